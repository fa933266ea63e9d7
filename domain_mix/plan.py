"""A plan: how many rows of each source make the mixture, checked, and then mixed.

Every row gets a number: a hash of its normalised question and the plan's seed. Equal questions have equal numbers, which
finds repeats; and the rows with the smallest numbers are a uniform random sample that does not depend on the order of the
files (bottom-k sampling). So one pass and the memory of the rows that are taken are enough.
"""

import contextlib
import hashlib
import heapq
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import screen
from common.files import text_table
from common.paths import data_dir
from common.rows import Bad, Unusable, blank, checked, read, said
from common.settings import read_yaml
from sources import ADAPTERS, clean, normalise, read_hub, write_jsonl

HERE = Path(__file__).resolve().parent
COLUMNS = {name: (name,) for name in ("instruction", "output")}  # of a CSV file or a workbook
CHANGING = ("system", "tools", "images")


@dataclass
class Report:
    """What became of one source, or of one of its keyword groups."""

    name: str
    asked: int
    available: int = 0
    taken: int = 0
    more: bool = False  # the hub was read only until there was enough
    dropped: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    unused: dict = field(default_factory=dict)  # columns that would change what the answers mean -> rows


def keyword_groups(groups):
    """groups: {name: [keyword]} -> function from a text to the first group with a keyword in it, or None.

    Keywords are whole words, in any case; Chinese ones, which no space ends, are looked for anywhere.
    """
    patterns = {}
    for name, words in groups.items():
        bounded = [re.escape(str(word).casefold()) for word in words]
        bounded = [rf"(?<!\w){word}(?!\w)" if word.isascii() else word for word in bounded]
        patterns[name] = re.compile("|".join(bounded))

    def group_of(text):
        text = text.casefold()
        return next((name for name, pattern in patterns.items() if pattern.search(text)), None)

    return group_of


def number_of(row, seed) -> bytes:
    """The row's number: a keyed hash of its question, 12 bytes. Rows sorted by it are in random order."""
    text = normalise(f"{row['instruction']}\n{row['input']}")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12, key=str(seed).encode()).digest()


def take(name, spec, quotas, seed, seen, progress=True):
    """Take one source's share -> (rows in random order, [Report]).

    spec: the plan's entry, with `path` (local) or `hub`. quotas: {group: rows}, the group None where the source has no
    keywords. seen: the numbers of the rows that other sources gave already; those taken here are added.
    """
    adapt, local = ADAPTERS[spec["format"]], "path" in spec
    group_of = keyword_groups(spec["keywords"]) if "keywords" in spec else lambda text: None
    reports = {group: Report(name + (f"/{group}" if group else ""), asked) for group, asked in quotas.items()}
    first = next(iter(reports.values()))
    heaps, known = {group: [] for group in quotas}, set()

    def drop(kind, where=None):
        first.dropped[kind] = first.dropped.get(kind, 0) + 1
        if where and first.dropped[kind] == 1:  # the first of each kind is named
            first.notes.append(f"{where}; row dropped: {kind}")

    if local and Path(path := spec["path"]).suffix and not Path(path).exists():
        raise SystemExit(f"source {name}: {path}: no such file or folder. Put it there, or: --source {name}=FILE.")
    rows = read(spec["path"], COLUMNS, COLUMNS) if local else read_hub(spec, seed)
    rows = checked(
        screen.bar("reading {name}", None, " rows", rows, hidden=not progress, name=name), lambda row: clean(row, adapt)
    )
    for number, (where, raw, made) in enumerate(rows):
        if isinstance(made, Unusable):
            first.notes.append(f"{where}: {made}")
            continue
        if isinstance(made, Bad):
            drop(made.args[0], f"{where}{said(made)}")
            continue
        instruction, extra, output = made
        for column in CHANGING:
            if not blank(raw.get(column)):
                first.unused[column] = first.unused.get(column, 0) + 1
        group = group_of(f"{instruction}\n{extra}")
        if group not in quotas:
            drop("no keyword")
            continue
        row = {"instruction": instruction, "input": extra, "output": output, "source": reports[group].name}
        rank = number_of(row, seed)
        if rank in seen or rank in known:
            drop("duplicate")
            continue
        known.add(rank)
        reports[group].available += 1
        # A heap of negated ranks: its top is the largest rank that is still kept. `number` settles no tie, ranks differ.
        entry = (-int.from_bytes(rank), number, row)
        if len(heaps[group]) < quotas[group]:
            heapq.heappush(heaps[group], entry)
        elif quotas[group] and local:
            heapq.heappushpop(heaps[group], entry)
        if not local and all(len(heaps[each]) == quotas[each] for each in quotas):
            for report in reports.values():
                report.more = True
            break
    taken = []
    for group, heap in heaps.items():
        reports[group].taken = len(heap)
        seen.update((-entry[0]).to_bytes(12) for entry in heap)
        taken += heap
    return [row for _, _, row in sorted(taken, reverse=True)], list(reports.values())


def load_plan(file, sources=()) -> dict:
    """A plan file, checked, with `sources` (NAME=PATH) put in. Raises SystemExit with the file and its key."""
    file = Path(file)
    if not file.exists() and file.name == str(file) and not file.suffix:
        file = HERE / "plans" / f"{file}.yaml"
    try:
        plan = read_yaml(file)
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}. Plans that come along: small, large.") from None
    except ValueError as error:
        raise SystemExit(f"{file}: {error}") from None
    keys = {"total": int, "seed": int, "ratios": dict, "sources": dict}
    if not isinstance(plan, dict) or set(plan) != set(keys):
        raise SystemExit(f"{file}: a plan has exactly the keys {', '.join(keys)}.")
    for key, kind in keys.items():
        if type(plan[key]) is not kind or key != "seed" and (plan[key] <= 0 if kind is int else not plan[key]):
            raise SystemExit(f"{file}: {key} must be {'a whole number above 0' if kind is int else 'a mapping'}.")
    names = {}
    for name, spec in plan["sources"].items():
        # What a source gives is kept in a file of its name.
        if not re.fullmatch(r"\w[\w .-]*", str(name)) or len(str(name).encode()) > 200:
            raise SystemExit(
                f"{file}: sources: {str(name)[:60]!r} is not a name: letters, digits, blanks and _ . - only."
            )
        if not isinstance(spec, dict) or spec.get("format") not in list(ADAPTERS):
            raise SystemExit(f"{file}: sources: {name}: format must be one of {', '.join(ADAPTERS)}.")
        if unknown := set(spec) - {"format", "path", "hub", "config", "files", "split", "keywords"}:
            raise SystemExit(f"{file}: sources: {name}: unknown key {sorted(unknown)[0]!r}.")
        if "path" not in spec and "hub" not in spec:
            raise SystemExit(f"{file}: sources: {name}: needs a path or a hub.")
        for key in {"path", "hub", "config", "split"} & set(spec):
            if not isinstance(spec[key], str):
                raise SystemExit(f"{file}: sources: {name}: {key} must be text.")
        if "path" in spec:
            spec["path"] = str(find_file(spec["path"], file.parent))
        groups = spec.get("keywords", {None: ["any"]})
        if not isinstance(groups, dict) or not all(isinstance(words, list) and words for words in groups.values()):
            raise SystemExit(f"{file}: sources: {name}: keywords must be lists by group, none of them empty.")
        names |= {f"{name}/{group}" if group else name: (name, group) for group in groups}
    if set(names) != set(plan["ratios"]):
        odd = sorted(set(names) ^ set(plan["ratios"]))
        raise SystemExit(f"{file}: ratios and sources must name the same; they differ in {', '.join(odd)}.")
    ratios = plan["ratios"]
    if not all(isinstance(ratio, int | float) and ratio >= 0 for ratio in ratios.values()):
        raise SystemExit(f"{file}: ratios must be numbers from 0 to 1.")
    if abs(sum(ratios.values()) - 1) > 1e-6:
        raise SystemExit(f"{file}: the ratios sum to {sum(ratios.values()):.6g}, not to 1.")
    for source in sources:
        name, sign, path = source.partition("=")
        if not sign or not path or name not in plan["sources"]:
            raise SystemExit(f"--source {source}: expected NAME=PATH with NAME one of {', '.join(plan['sources'])}.")
        plan["sources"][name] = {**plan["sources"][name], "path": str(Path(path).expanduser())}
    quotas = share_out(plan["total"], ratios)
    plan["quotas"] = {name: {} for name in plan["sources"]}
    for full, (name, group) in names.items():
        plan["quotas"][name][group] = quotas[full]
    return plan


def find_file(path, folder):
    """A plan's path: beside the plan, in the working folder, or in DATA_DIR/domain_mix."""
    places = [folder / path, Path(path), data_dir() / path]
    return next((place for place in places if place.exists()), places[-1])


def share_out(total, ratios) -> dict:
    """`total` rows in whole numbers by ratio; the rows that rounding leaves go to the largest remainders."""
    quotas = {name: int(total * ratio + 1e-9) for name, ratio in ratios.items()}
    by_remainder = sorted(ratios, key=lambda name: quotas[name] - total * ratios[name])
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def mix(plan, allow_short=False, parts=None, progress=True):
    """Take all sources of a plan -> (rows, [Report]). Rows are in random order, the same ones for the same seed.

    parts: a folder in which each source that was taken is kept, so that a run that was cut off need not take it again.
    Raises SystemExit where a source has too few rows, unless `allow_short`.
    """
    rows, reports, seen, chain = [], [], set(), ""
    for name, spec in plan["sources"].items():
        quotas = plan["quotas"][name]
        # What a source gives depends on those before it, whose rows it must not repeat.
        made_from = [chain, plan["seed"], list(quotas.items()), spec, file_stamps(spec)]
        chain = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        part = parts / f"{name}.jsonl" if parts else None
        kept = read_part(part, chain) if part else None
        if kept:
            taken, made = kept
            print(f"{name}: {len(taken):,} rows were taken before ({part})")
            seen.update(number_of(row, plan["seed"]) for row in taken)
        else:
            try:
                taken, made = take(name, spec, quotas, plan["seed"], seen, progress)
            except Exception as error:  # no network, no such data set, an interrupted download: the advice is the same
                if "path" in spec:
                    raise
                raise SystemExit(
                    f"source {name}: {spec['hub']} cannot be read from the hub "
                    f"({' '.join(str(error).split())[:200] or type(error).__name__}).\n"
                    f"Give a local copy: --source {name}=PATH (a JSON, JSONL or Parquet file, or a folder of them). "
                    f"To get one on a machine with a network: hf download {spec['hub']} --repo-type dataset "
                    f"--local-dir {name}"
                ) from None
            if part:
                write_part(part, chain, taken, made)
        rows += taken
        reports += made
    short = [f"{report.name} has {report.available:,} of {report.asked:,}" for report in reports if short_of(report)]
    if short and not allow_short or not rows:
        print(format_reports(reports))
    if short and not allow_short:
        raise SystemExit(
            f"too few rows: {'; '.join(short)}. Lower the total or the ratio in the plan, give more data with --source, "
            "or take what there is with --allow_short."
        )
    if not rows:
        raise SystemExit("no source has a row that can be used.")
    rows.sort(key=lambda row: number_of(row, plan["seed"]))
    return rows, reports


def short_of(report):
    return report.taken < report.asked


def file_stamps(spec):
    """Names, sizes and times of a local source's files: a part made from other files is not used."""
    path = Path(spec.get("path", ""))
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if "path" in spec and path.is_file() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def read_part(part, chain):
    with contextlib.suppress(OSError, ValueError, KeyError), open(part, encoding="utf-8") as lines:
        head = json.loads(next(lines))
        if head["made_from"] == chain:
            return [json.loads(line) for line in lines], [Report(**report) for report in head["reports"]]
    return None


def write_part(part, chain, rows, reports):
    head = {"made_from": chain, "reports": [asdict(report) for report in reports]}
    write_jsonl([head, *rows], part)


def format_reports(reports) -> str:
    """The table asked / available / taken, what was dropped and why, and the ratios where a source ran short."""
    total = sum(report.taken for report in reports) or 1
    rows = [
        (each.name, f"{each.asked:,}", f"{each.available:,}{'+' if each.more else ''}", f"{each.taken:,}",
         f"{each.taken / total:.1%}")
        for each in reports
    ]  # fmt: skip
    lines = [text_table(("source", "asked", "available", "taken", "share"), rows)]
    for report in reports:
        if report.dropped:
            why = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
            lines.append(f"{report.name.split('/')[0]}: dropped {why}")
        if report.unused:
            unused = ", ".join(f"{column} (in {count:,} rows)" for column, count in report.unused.items())
            lines.append(f"{report.name.split('/')[0]}: columns not used: {unused}")
        lines += [f"  {note}" for note in report.notes]
    if any(short_of(report) for report in reports):
        ratios = ", ".join(f"{report.name} {report.taken / total:.4f}" for report in reports)
        lines.append(f"short: the ratios that resulted are {ratios}")
    return "\n".join(lines)
