"""Ratings: MovieLens as published, or a synthetic set with a planted rank and a known noise floor.

Read from a file, a folder or the zip as downloaded: u.data (ml-100k), ratings.dat (ml-1m, ml-10m) or ratings.csv
(ml-latest-small, ml-20m, ml-25m). MovieLens may not be redistributed, so nothing of it is in this folder.
"""

import csv
import io
import os
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from common import paths


@dataclass
class Ratings:
    """n ratings. users, items: (n,) int32, places in user_ids and item_ids; values: (n,) float32."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    titles: list[str]
    low: float  # predictions are clipped to what a rating can be
    high: float
    origin: str
    groups: np.ndarray | None = None  # an item's planted genre, synthetic sets only
    floor: float | None = None  # the noise's standard deviation: no model's expected RMSE is below it
    notes: list[str] = field(default_factory=list)

    def __len__(self):
        return len(self.values)

    def take(self, chosen):
        """The ratings at `chosen` (a mask or places); ids and titles stay those of all."""
        return self.users[chosen], self.items[chosen], self.values[chosen]


@dataclass
class Format:
    separator: str
    header: str
    low: float
    films: str  # the file of titles beside it
    films_encoding: str


FORMATS = {
    "u.data": Format("\t", "", 1, "u.item", "latin-1"),
    "ratings.dat": Format("::", "", 0.5, "movies.dat", "latin-1"),
    "ratings.csv": Format(",", "userId,movieId,rating,timestamp", 0.5, "movies.csv", "utf-8"),
}
HIGH = 5
ROW = np.dtype([("user", np.int64), ("item", np.int64), ("value", np.float32), ("time", np.float64)])
MOST_UNPACKED = 4e9  # bytes of a zip file's files
PUBLISHED = (100_000, 943, 1682)  # ml-100k's ratings, users, films


def find_source(given: str | None) -> Path | None:
    """--data, else MATH_DEMOS_DATA_DIR, else DATA_DIR/math_demos if it is there; None: the synthetic set."""
    if given:
        return Path(given).expanduser()
    folder = paths.data_dir()
    return folder if folder.exists() or os.environ.get("MATH_DEMOS_DATA_DIR") else None


@contextmanager
def _opened(source: Path):
    """name -> a function that opens the file of that name, for a folder, a zip or a file with its neighbours."""
    if not source.exists():
        raise SystemExit(f"{source}: no such file or folder. Give MovieLens as --data, or nothing: a synthetic set.")
    if source.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(source) as archive:
                yield _zipped(archive, source)
        # Damage shows when a file is opened or read: a wrong sum, a password, a method that Python does not know.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError):
            raise SystemExit(f"{source}: not a complete zip file, or locked. Download it again.") from None
        return
    found = [*source.glob("*"), *source.glob("*/*")] if source.is_dir() else [*source.parent.glob("*")]
    sets = [path for path in found if path.name in FORMATS]
    if source.is_dir() and len(sets) > 1:
        raise SystemExit(
            f"{source} holds several sets: {', '.join(map(str, sorted(sets)))}. Give one of them as --data."
        )
    if source.is_dir() and sets:
        found = [*sets[0].parent.glob("*")]
    files = {path.name: partial(path.open, "rb") for path in found if path.is_file()}
    if source.is_file():  # it is what was asked for, whatever it is called
        names = [name for name in FORMATS if source.name == name]
        names = names or [name for name in FORMATS if Path(name).suffix == source.suffix]
        if not names:
            raise SystemExit(
                f"{source}: expected u.data, ratings.dat, ratings.csv (or another .data, .dat, .csv file)."
            )
        files = {name: opened for name, opened in files.items() if name not in FORMATS}
        files[names[0]] = partial(source.open, "rb")
    yield files


def _zipped(archive, source):
    """name -> a function that opens the file of that name, of the one set in a zip file."""
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    sets = [name for name in names if Path(name).name in FORMATS]
    if len(sets) > 1:
        raise SystemExit(
            f"{source} holds several sets: {', '.join(sorted(sets))}. Unpack it and give one of them as --data."
        )
    size = sum(archive.getinfo(name).file_size for name in names)
    if size > MOST_UNPACKED:
        raise SystemExit(
            f"{source}: unpacks to {size / 1e9:,.1f} GB; MovieLens's largest set has 1.1. Is it really one?"
        )
    folder = Path(sets[0]).parent if sets else None
    return {Path(name).name: partial(archive.open, name) for name in names if Path(name).parent == folder}


def read_ratings(source: Path) -> Ratings:
    """MovieLens from a file, a folder or a zip. Raises SystemExit with the file, the line and what was wrong."""
    with _opened(source) as files:
        name = next((name for name in FORMATS if name in files), None)
        if name is None:
            raise SystemExit(f"{source}: neither u.data nor ratings.dat nor ratings.csv in it.")
        rows = _rows(
            files[name], f"{source}" if source.is_file() and name == source.name else f"{source}: {name}", name
        )
        titles = _titles(files, FORMATS[name].films)
    notes = []
    invented = (rows["user"] == 0) if name == "u.data" else np.zeros(0, bool)
    if invented.any():  # seen in a course's copy
        rows = rows[~invented]
        notes.append(f"{invented.sum()} rows of user 0 left out: MovieLens's users begin at 1")
    user_ids, users = np.unique(rows["user"], return_inverse=True)
    item_ids, items = np.unique(rows["item"], return_inverse=True)
    _reject_duplicates(source, name, rows, users, items, len(item_ids))
    if name == "u.data" and (found := (len(rows), len(user_ids), len(item_ids))) != PUBLISHED:
        notes.append("not ml-100k as published: {:,} ratings, {:,} users, {:,} films".format(*found))
    if not titles:
        notes.append(f"no {FORMATS[name].films} beside it: films go by their number")
    return Ratings(
        users.astype(np.int32),
        items.astype(np.int32),
        rows["value"].copy(),
        user_ids,
        item_ids,
        [titles.get(int(item), f"film {item}") for item in item_ids],
        float(FORMATS[name].low),
        float(HIGH),
        f"{source}",
        notes=notes,
    )


def read_folds(source: Path, ratings: Ratings) -> list[np.ndarray]:
    """ml-100k's own five folds (u1.test to u5.test): for each a mask over `ratings`, True where it is tested."""
    masks = []
    every = _key(ratings.user_ids[ratings.users], ratings.item_ids[ratings.items])
    with _opened(source) as files:
        for name in (f"u{n}.test" for n in range(1, 6)):
            if name not in files:
                raise SystemExit(f"{source}: --folds needs {name}; ml-100k has it, the other sets have no folds.")
            rows = _rows(files[name], f"{source}: {name}", "u.data")
            masks.append(np.isin(every, _key(rows["user"], rows["item"])))
            if masks[-1].sum() != len(rows):
                raise SystemExit(f"{source}: {name} has ratings that u.data lacks: files of two editions are mixed.")
    return masks


def _key(users, items):
    return users * (1 << 32) + items


def _rows(opened, where, name) -> np.ndarray:
    """The lines of a ratings file as an array of ROW, each checked."""
    form = FORMATS[name]
    with opened() as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline=None)
        lines = text if form.separator != "::" else (line.replace("\t", " ").replace("::", "\t") for line in text)
        if form.header and (first := text.readline().strip("\ufeff\r\n ")) != form.header:
            raise SystemExit(f"{where}, line 1: expected the header {form.header}, found {first[:80]!r}.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's warning of an empty file; it is an error below
                rows = np.loadtxt(lines, ROW, comments=None, delimiter=form.separator.replace("::", "\t"), ndmin=1)
            bad = not len(rows) or not np.isfinite(rows["value"]).all()
            bad = bad or rows["value"].min() < form.low or rows["value"].max() > HIGH
        except ValueError:
            bad = True
    if bad:
        _say_what_is_wrong(opened, where, form)
    return rows


def _say_what_is_wrong(opened, where, form):
    """Read again, line by line, up to the first wrong one: only a file that has one pays for knowing where."""
    wanted = form.separator.replace("\t", "<tab>").join(("user", "film", "rating", "time"))
    with opened() as raw:
        for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8", errors="replace"), 1):
            if not (text := line.strip("\r\n")) or (form.header and number == 1):
                continue
            parts = text.split(form.separator)
            if len(parts) != 4:
                raise SystemExit(f"{where}, line {number}: expected {wanted}, found {text[:80]!r}.")
            for column, (part, kind) in enumerate(zip(parts, (int, int, float, float), strict=True), 1):
                try:
                    value = kind(part)
                except ValueError:
                    raise SystemExit(f"{where}, line {number}, column {column}: {part[:40]!r} is no number.") from None
                if column == 3 and not form.low <= value <= HIGH:  # NaN is not, either
                    raise SystemExit(
                        f"{where}, line {number}: rating {part} is not between {form.low:g} and {HIGH}. "
                        "Correct the line or leave it out."
                    )
    raise SystemExit(f"{where}: no rating in it. Expected lines of {wanted}.")


def _reject_duplicates(source, name, rows, users, items, n_items):
    """MovieLens has one rating per user and film. Which of two counts is not ours to guess."""
    key = users * n_items + items
    order = np.argsort(key, kind="stable")
    twice = np.flatnonzero(key[order][1:] == key[order][:-1])
    if len(twice):
        row = rows[order[twice[0] + 1]]
        raise SystemExit(
            f"{source}: {name}: user {row['user']} rated film {row['item']} more than once ({len(twice):,} such rows). "
            "Keep one of them."
        )


def _titles(files, name) -> dict[int, str]:
    """Film -> title, from u.item, movies.dat or movies.csv; empty where the file is not there."""
    if name not in files:
        return {}
    separator = {"u.item": "|", "movies.dat": "::", "movies.csv": ","}[name]
    encoding = next(form.films_encoding for form in FORMATS.values() if form.films == name)
    with files[name]() as raw:
        text = io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="")
        rows = csv.reader(text) if separator == "," else (line.rstrip("\r\n").split(separator) for line in text)
        return {int(row[0]): row[1] for row in rows if len(row) > 1 and row[0].isdecimal()}


GENRES = ("western", "comedy", "horror", "drama", "space", "heist")


def synthetic(n=200_000, n_users=2_000, n_items=1_200, rank=6, noise=0.8, seed=0) -> Ratings:
    """Ratings = mean + two biases + a table of rank `rank` + noise of standard deviation `noise`.

    Films are as unequally popular as real ones (Zipf), and each belongs to a genre: a direction that its factors share.
    Ratings are not rounded to stars, since rounding would blur the noise floor. n: how many; fewer by the ones drawn
    twice, which stay out.
    """
    rng = np.random.default_rng(seed)
    popular, active = 1 / np.arange(1, n_items + 1) ** 0.8, rng.lognormal(0, 1, n_users)
    key = np.zeros(0, np.int64)
    for _ in range(3):  # a pair that is drawn twice stays in once, so draw again what is missing
        more = rng.choice(n_users, n - len(key), p=active / active.sum()) * n_items
        more += rng.choice(n_items, n - len(key), p=popular / popular.sum())
        key = np.concatenate([key, more])
        key.sort()
        key = key[np.concatenate([[True], key[1:] != key[:-1]])]
    rng.shuffle(key)
    users, items = (key // n_items).astype(np.int32), (key % n_items).astype(np.int32)
    del key, more
    groups = rng.integers(0, len(GENRES), n_items)
    centre = rng.standard_normal((len(GENRES), rank))
    films = (0.8 * centre[groups] + 0.6 * rng.standard_normal((n_items, rank))).astype(np.float32)
    tastes = (0.35 * rng.standard_normal((n_users, rank))).astype(np.float32)
    harsh, good = 0.4 * rng.standard_normal(n_users), 0.4 * rng.standard_normal(n_items)
    values = np.empty(len(users), np.float32)
    for at in range(0, len(values), 1 << 20):
        u, i = users[at : at + (1 << 20)], items[at : at + (1 << 20)]
        signal = 3.5 + harsh[u] + good[i] + np.einsum("nk,nk->n", tastes[u], films[i])
        values[at : at + (1 << 20)] = signal + noise * rng.standard_normal(len(u))
    return Ratings(
        users,
        items,
        values,
        np.arange(n_users),
        np.arange(n_items),
        [f"{GENRES[group]} {number}" for number, group in enumerate(groups)],
        float(values.min()),
        float(values.max()),
        f"synthetic: rank {rank} planted, noise {noise}, seed {seed}",
        groups=groups,
        floor=noise,
    )
