"""A table of ratings as the product of two thin ones, by alternating least squares (ALS).

    r(u, i) ~ mu + b_u + b_i + p_u . q_i            minimise  sum (r - ...)^2 + lam (|P|^2 + |Q|^2)

With Q fixed, each p_u is a small ridge regression of its own; with P fixed, each q_i. Every half-step solves its half
exactly, so the objective never rises. Departures from the textbook: the biases are fitted first and stay (the factors
explain what they leave), rows of like length are solved together as one batch, and lam is chosen on ratings held out
of the training part, never on the test part.

Nothing at hand:        python als_movielens.py                         (a synthetic set, rank and noise known)
MovieLens as it comes:  python als_movielens.py --data ml-100k.zip      (or a folder, u.data, ratings.dat, ratings.csv)
Its official folds:     python als_movielens.py --data ml-100k.zip --folds
Films for a user:       python als_movielens.py --data ml-latest-small.zip --user 42 --save factors.npz
More than one machine:  python als_movielens.py --data ml-25m.zip --engine spark --weighted    (pip install pyspark)
"""

import hashlib
import json
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Set before numpy is imported. The products here are small and many: one thread for each batch of them, not for each.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from plots import BLUE, GREEN, GREY, ORANGE, RED, pyplot, save

from common.cli import arg, parse
from common.paths import output_dir
from data import find_source, read_folds, read_ratings, synthetic

DEFAULTS = dict(
    rank=20,  # more pays off with millions of ratings
    iterations=12,  # the held-out error has settled by then
    lam=-1.0,  # the ridge; -1: the best on an inner split
    bias_lam=5.0,  # a film's bias counts fully once it has many more ratings than this
    seed=0,
)
# Plain lam is in ratings; with --weighted it is multiplied by the row's number of ratings, so it is smaller.
GRID = {False: (1, 2, 4, 7, 10, 15, 20, 30), True: (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)}
BATCH = 1 << 15  # ratings of a batch: with 20 factors each 2.6 MB, about what a core's cache holds
PADDING = 1.1  # a batch's longest row over its shortest


@dataclass
class Args:
    data: str | None = arg(None, "MovieLens: a file, folder or zip (default: MATH_DEMOS_DATA_DIR, else synthetic)")
    rank: int = arg(20, "")
    iterations: int = arg(12, "")
    lam: float = arg(-1.0, "")
    bias_lam: float = arg(5.0, "")
    seed: int = arg(0, "")
    weighted: bool = arg(False, "lam times the row's number of ratings (ALS-WR), as Spark has it")
    test_share: float = arg(0.1, "of the ratings, drawn at random")
    folds: bool = arg(False, "ml-100k's own five folds instead, and their mean")
    ranks: list[str] = arg(["1", "2", "4", "6", "8", "12", "20", "40"], "of the figure's second panel")
    user: int | None = arg(None, "recommend films for this user (default: the one with most ratings)")
    save: str | None = arg(None, "an .npz for the factors, written after each iteration; an unfinished one goes on")
    engine: Literal["numpy", "spark"] = arg("numpy", "spark: the same with Spark MLlib's ALS, through pyspark and Java")
    threads: int = arg(0, "0: as many as there are cores")


# -- the method


def batches(rows, cols, values, n_rows, n_cols):
    """Ratings grouped by row, rows of like length together: a list of (rows (B,), cols (B, L), values (B, L)).

    Short rows are padded with column n_cols, where factors are zero, and value 0: they add nothing to any sum. Rows
    without ratings are in no batch. Takes 8 bytes a rating, plus padding.
    """
    counts = count(rows, n_rows)
    longest_first = np.argsort(-counts, kind="stable").astype(np.int32)
    place = np.empty(n_rows, np.int32)
    place[longest_first] = np.arange(n_rows, dtype=np.int32)
    lengths = counts[longest_first]
    before = np.concatenate([[0], np.cumsum(lengths)])
    made, low, slab = [], 0, max(1 << 17, len(rows) // 8)
    while low < n_rows and lengths[low]:
        # Some rows at a time, found in some ratings at a time: the sort then needs little memory of its own.
        high = max(low + 1, int(np.searchsorted(before, before[low] + slab, side="right")) - 1)
        found = []
        for at in _slices(len(rows)):
            p = place[rows[at]]
            found.append(np.flatnonzero((p >= low) & (p < high)) + at.start)
        order = np.concatenate(found)
        order = order[np.argsort(place[rows[order]], kind="stable")]
        while low < high and lengths[low]:
            length = lengths[low]
            end = int(np.searchsorted(-lengths, -int(np.ceil(length / PADDING)), side="right"))
            end = max(low + 1, min(end, high, low + max(1, BATCH // length)))
            column = np.arange(length)
            at = before[low:end, None] - before[high] + len(order) + column
            valid = column < lengths[low:end, None]
            at = order[np.where(valid, at, 0)]
            made.append((
                longest_first[low:end],
                np.where(valid, cols[at], n_cols).astype(np.int32),
                np.where(valid, values[at], 0).astype(values.dtype),
            ))  # fmt: skip
            low = end
        low = max(low, high)
    return made


def leave(side, mu, b_rows, b_cols):
    """Take mu and the biases from the values of batches(), in place; padding stays 0."""
    for rows, cols, values in side:
        values -= np.where(cols < len(b_cols) - 1, mu + b_rows[rows, None] + b_cols[cols], 0).astype(values.dtype)


def half_step(side, fixed, solved, ridge, pool=None):
    """Solve every row of one side: p = (Q'Q + ridge I)^-1 Q'r over its own ratings. Writes into `solved`.

    side: from batches(). fixed, solved: (n + 1, k), the last row zero. ridge: (n,), at least 0 and for rows with fewer
    ratings than factors above. Returns sum of p . Q'r: at the optimum, sum r^2 less this is the rows' part of the
    objective, so it comes for free.
    """

    def solve(batch):
        rows, cols, values = batch
        x = fixed.take(cols, axis=0)  # (B, L, k)
        right = (values[:, None, :] @ x)[:, 0]
        if x.shape[1] >= x.shape[2]:
            system = x.transpose(0, 2, 1) @ x
            system[:, range(x.shape[2]), range(x.shape[2])] += ridge[rows, None]
            p = np.linalg.solve(system, right[..., None])[..., 0]
        else:  # fewer ratings than factors: the same p from the smaller system, p = Q'(QQ' + ridge I)^-1 r
            system = x @ x.transpose(0, 2, 1)
            system[:, range(x.shape[1]), range(x.shape[1])] += ridge[rows, None]
            p = (np.linalg.solve(system, values[..., None]).transpose(0, 2, 1) @ x)[:, 0]
        solved[rows] = p
        return np.einsum("nk,nk->", p, right, dtype=np.float64)

    return sum((pool.map if pool else map)(solve, side))


def start(n_users, n_items, rank, dtype=np.float32, seed=0):
    """P zero and Q small and random, each with a zero row behind the last, which stands for the unknown."""
    P, Q = np.zeros((n_users + 1, rank), dtype), np.zeros((n_items + 1, rank), dtype)
    Q[:-1] = 0.1 * np.random.default_rng(seed).standard_normal((n_items, rank))
    return P, Q


def als(by_user, by_item, P, Q, lam, iterations, weighted=False, threads=1, first=0):
    """Alternate; P and Q change in place. Yields (iteration, objective after P, objective after Q), in float64.

    by_user, by_item: batches() of the residuals, rows = users and cols = items, and the other way round.
    """
    if lam <= 0:
        raise SystemExit(f"--lam {lam:g}: must be above 0, or a row with fewer ratings than --rank has no solution.")
    ridges = []
    for side, factors, n_cols in ((by_user, P, len(Q) - 1), (by_item, Q, len(P) - 1)):
        rated = np.zeros(len(factors) - 1, P.dtype)
        for rows, cols, _ in side:
            rated[rows] = (cols < n_cols).sum(axis=1)
        factors[:-1][rated == 0] = 0  # in no training rating: the penalty alone would decide, and says 0
        ridges.append(lam * rated if weighted else np.full_like(rated, lam))
    squares = sum(np.einsum("nl,nl->", values, values, dtype=np.float64) for _, _, values in by_user)

    def penalty(factors, ridge):
        return (np.einsum("nk,nk->n", factors[:-1], factors[:-1], dtype=np.float64) * ridge).sum()

    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of Python's lock inside products and solves
        pool = pool if threads > 1 else None
        for iteration in range(first + 1, iterations + 1):
            after_p = squares - half_step(by_user, Q, P, ridges[0], pool) + penalty(Q, ridges[1])
            after_q = squares - half_step(by_item, P, Q, ridges[1], pool) + penalty(P, ridges[0])
            yield iteration, after_p, after_q


def fit_biases(users, items, values, n_users, n_items, lam=5.0, sweeps=10):
    """mu, b_u (n_users + 1,), b_i (n_items + 1,): each the shrunken mean of what the others leave; the last is 0."""
    mu = float(values.mean(dtype=np.float64))
    b_u, b_i = np.zeros(n_users + 1), np.zeros(n_items + 1)
    sides = (b_i, b_u, items, users, count(items, n_items + 1)), (b_u, b_i, users, items, count(users, n_users + 1))
    for _ in range(sweeps):
        for mine, other, index, others, counts in sides:
            total = np.zeros(len(mine))
            for at in _slices(len(values)):
                total += np.bincount(index[at], values[at] - mu - other[others[at]], len(mine))
            mine[:] = total / np.maximum(lam + counts, 1e-12)  # lam 0: nobody rated, nothing to divide
    return mu, b_u, b_i


def _slices(n, size=1 << 17):
    return (slice(at, at + size) for at in range(0, n, size))


def count(index, n):
    """How often each of 0 to n - 1 is in `index`."""
    return sum((np.bincount(index[at], minlength=n) for at in _slices(len(index))), np.zeros(n, np.int64))


def prepare(train, n_users, n_items, bias_lam):
    """(mu, b_u, b_i), and the two sides for als(): batches of what the biases leave, by user and by film."""
    users, items, values = train
    mu, b_u, b_i = fit_biases(users, items, values, n_users, n_items, bias_lam)
    by_user = batches(users, items, values, n_users, n_items)
    leave(by_user, mu, b_u, b_i)
    by_item = batches(items, users, values, n_items, n_users)
    leave(by_item, mu, b_i, b_u)
    return (mu, b_u, b_i), by_user, by_item


@dataclass
class Model:
    """Biases and factors, each with a zero row behind the last: place -1 is a user or film nobody has seen."""

    mu: float
    b_u: np.ndarray
    b_i: np.ndarray
    P: np.ndarray
    Q: np.ndarray
    low: float
    high: float

    def predict(self, users, items, clip=True):
        """Ratings of pairs of places, (n,) float64; -1 falls back to the other's bias, both to the mean. Never NaN."""
        out = np.empty(len(users))
        for at in _slices(len(users)):
            u, i = users[at], items[at]
            out[at] = self.mu + self.b_u[u] + self.b_i[i] + np.einsum("nk,nk->n", self.P[u], self.Q[i])
        return out.clip(self.low, self.high) if clip else out


def errors(predicted, values):
    """RMSE and MAE."""
    off = predicted - values
    return float(np.sqrt(np.mean(off**2))), float(np.mean(np.abs(off)))


def fit(ratings, train, args, rank=None, lam=None, iterations=None, watch=None, resume=None):
    """Biases, then ALS on what they leave. train: (users, items, values). watch(model, iteration, after P, after Q) is
    called after each iteration. resume: (iteration, P, Q) of an earlier run. Returns a Model."""
    n_users, n_items = len(ratings.user_ids), len(ratings.item_ids)
    biases, by_user, by_item = prepare(train, n_users, n_items, args.bias_lam)
    first, P, Q = resume or (0, *start(n_users, n_items, rank or args.rank, train[2].dtype, args.seed))
    model = Model(*biases, P, Q, ratings.low, ratings.high)
    for state in als(by_user, by_item, P, Q, lam, iterations or args.iterations, args.weighted, args.threads, first):
        if watch:
            watch(model, *state)
    return model


def inner_split(train, seed, share=0.1):
    """The training ratings in two parts, to choose lam on: the test part has no say."""
    held = np.random.default_rng([seed, 1]).random(len(train[2])) < share
    return tuple(part[~held] for part in train), tuple(part[held] for part in train)


def choose_lam(ratings, train, args):
    """The lam of GRID with the lowest RMSE on the inner split: (lam, [(lam, RMSE), ...])."""
    inner, held = inner_split(train, args.seed)
    tried = []
    for lam in GRID[args.weighted]:
        model = fit(ratings, inner, args, lam=lam, iterations=min(8, args.iterations))
        tried.append((lam, errors(model.predict(*held[:2]), held[2])[0]))
    return min(tried, key=lambda pair: pair[1])[0], tried


# -- the same through Spark


def spark_fit(ratings, train, args, lam):
    """Spark MLlib's ALS on the same residuals: (Model, seconds). Its penalty is always the weighted one (ALS-WR)."""
    import shutil
    import tempfile

    if not args.weighted:
        raise SystemExit("--engine spark: Spark's penalty is lam times a row's number of ratings. Add --weighted.")
    home = os.environ.get("JAVA_HOME")
    if not shutil.which("java") and not (home and shutil.which("java", path=f"{home}/bin")):
        raise SystemExit("--engine spark needs Java 17 or newer: no java on the PATH, none in JAVA_HOME.")
    try:
        from pyspark.ml.recommendation import ALS
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SystemExit(f"--engine spark needs pyspark ({error}): pip install pyspark") from None
    users, items, values = train
    n_users, n_items = len(ratings.user_ids), len(ratings.item_ids)
    mu, b_u, b_i = fit_biases(users, items, values, n_users, n_items, args.bias_lam)
    left = values - mu - b_u[users] - b_i[items]
    spark = SparkSession.builder.master(f"local[{args.threads}]").appName("als_movielens")
    spark = spark.config("spark.ui.enabled", False).config("spark.driver.memory", "4g")
    spark = spark.config("spark.sql.shuffle.partitions", 2 * args.threads).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            np.savetxt(f"{folder}/left.csv", np.column_stack([users, items, left]), "%d,%d,%.7g")
            table = spark.read.csv(f"{folder}/left.csv", schema="user INT, item INT, rating FLOAT").cache()
            table.count()  # reading is not fitting
            began = time.perf_counter()
            als = ALS(
                rank=args.rank, maxIter=args.iterations, regParam=lam, seed=args.seed,
                userCol="user", itemCol="item", ratingCol="rating", coldStartStrategy="nan",
            )  # fmt: skip
            fitted = als.fit(table)
            P, Q = start(n_users, n_items, args.rank)
            Q[:] = 0
            for factors, frame in ((P, fitted.userFactors), (Q, fitted.itemFactors)):
                for row in frame.collect():
                    factors[row["id"]] = row["features"]
            seconds = time.perf_counter() - began
    finally:
        spark.stop()
    return Model(mu, b_u, b_i, P, Q, ratings.low, ratings.high), seconds


# -- saving


def digest(train, args, lam):
    """What a saved run must have in common with this one to be gone on with."""
    made = hashlib.sha256(json.dumps([args.rank, lam, args.weighted, args.bias_lam, args.seed]).encode())
    for part in train:
        made.update(np.ascontiguousarray(part).data)
    return made.hexdigest()


def write_factors(file, ratings, model, iteration, key):
    """All that is needed to recommend, and to go on: under a temporary name first, so never half."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with open(part, "wb") as handle:
        np.savez(
            handle, P=model.P, Q=model.Q, b_u=model.b_u, b_i=model.b_i, mu=model.mu, low=model.low, high=model.high,
            user_ids=ratings.user_ids, item_ids=ratings.item_ids, iteration=iteration, key=key,
        )  # fmt: skip
    part.replace(file)


def read_factors(file, key):
    """(iteration, P, Q) of an earlier run with the same data and settings; None where there is no file."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return None
    try:
        with np.load(file, allow_pickle=False) as saved:
            if str(saved["key"]) == key:
                return int(saved["iteration"]), saved["P"], saved["Q"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        raise SystemExit(f"{file} exists and is no file of factors; it is kept. Name another with --save.") from None
    raise SystemExit(f"{file} holds factors of other data or settings; it is kept. Name another with --save.")


# -- what a person wants to see


def recommend(ratings, model, train, user, n=5):
    """Print a user's best rated films and the n with the highest predictions among those not rated yet."""
    place = np.flatnonzero(ratings.user_ids == user)
    place = int(place[0]) if len(place) else -1
    mine = train[1][train[0] == place] if place >= 0 else np.zeros(0, np.int32)
    if len(mine):
        theirs = train[2][train[0] == place]
        best = ", ".join(ratings.titles[i] for i in mine[np.argsort(-theirs, kind="stable")[:n]])
        print(f"\nuser {user}: {len(mine)} ratings; liked most: {best}")
    else:
        print(f"\nuser {user} has no ratings here, so every film gets mu + b_i, the same for every stranger")
    items = np.arange(len(ratings.item_ids), dtype=np.int32)
    score = model.predict(np.full(len(items), place), items, clip=False)
    score[mine] = -np.inf
    for item in np.argsort(-score, kind="stable")[:n]:
        if np.isfinite(score[item]):
            print(f"  {min(score[item], model.high):5.2f}  {ratings.titles[item]}")


def singular_values(P, Q):
    """Of P Q', without forming it: thin QR of both leaves a k x k matrix. Returns U (n, k), s, V (m, k)."""
    (qp, rp), (qq, rq) = np.linalg.qr(P.astype(np.float64)), np.linalg.qr(Q.astype(np.float64))
    u, s, vt = np.linalg.svd(rp @ rq.T)
    return qp @ u, s, qq @ vt.T


def draw(ratings, train, history, baselines, curve, model, engine):
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(16, 9), layout="constrained")
    figure.suptitle(
        f"A table of {len(ratings.user_ids):,} x {len(ratings.item_ids):,} ratings, "
        f"{len(ratings) / len(ratings.user_ids) / len(ratings.item_ids):.1%} known, as two thin ones",
        fontsize=17,
        fontweight="bold",
    )
    floor = dict(color=GREEN, linestyle="--", linewidth=1.5)
    axis = axes[0, 0]
    if history:
        axis.plot([h[0] for h in history], [h[1] for h in history], "o-", color=GREY, label="training ratings")
        axis.plot([h[0] for h in history], [h[2] for h in history], "o-", color=BLUE, label="test ratings")
        axis.set_xticks([h[0] for h in history][:: max(1, len(history) // 12)])
    axis.axhline(baselines["biases only"][0], color=ORANGE, linewidth=1.5, label="biases only, test")
    if ratings.floor:
        axis.axhline(ratings.floor, **floor, label="noise: nobody gets below it")
    axis.set(title=f"Convergence (rank {model.P.shape[1]}, {engine})", xlabel="iteration", ylabel="RMSE")
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.92))

    axis = axes[0, 1]
    if curve:
        axis.plot([c[0] for c in curve], [c[1] for c in curve], "o-", color=BLUE, label="test ratings")
        axis.set_xscale("log", base=2)
        axis.set_xticks([c[0] for c in curve], [str(c[0]) for c in curve])
        axis.minorticks_off()
    axis.axhline(baselines["biases only"][0], color=ORANGE, linewidth=1.5, label="biases only")
    if ratings.floor:
        axis.axhline(ratings.floor, **floor, label="noise")
    axis.set(title="Error against rank, the same ridge", xlabel="rank k", ylabel="RMSE")
    axis.legend()

    _, s, films = singular_values(model.P[:-1], model.Q[:-1])
    axis = axes[1, 0]
    axis.bar(np.arange(1, len(s) + 1), s, color=BLUE)
    axis.set(title="Spectrum: singular values of P Q'", xlabel="number", ylabel="singular value")
    axis.set_xticks(np.arange(1, len(s) + 1, max(1, len(s) // 10)))

    axis = axes[1, 1]
    popular = np.argsort(-np.bincount(train[1], minlength=len(ratings.item_ids)), kind="stable")
    shown = popular[:150] if ratings.groups is not None else popular[:60]
    axis.scatter(films[shown, 0], films[shown, 1], s=14, color=GREY)
    if ratings.groups is not None:
        names = [title.split()[0] for title in ratings.titles]
        for color, name in zip((BLUE, ORANGE, GREEN, RED, "#8456b0", "#3b3b3b"), sorted(set(names)), strict=False):
            mine = [i for i in shown if names[i] == name]
            axis.scatter(films[mine, 0], films[mine, 1], s=38, color=color, label=f"{name} (planted)")
        axis.legend(ncols=2)
    else:
        for i in spread(films[shown, :2], 22):
            axis.annotate(ratings.titles[shown[i]][:28], films[shown[i], :2], fontsize=9, xytext=(4, 3), textcoords="offset points")  # fmt: skip
    axis.set(title="Popular films: first two of their directions", xlabel="direction 1", ylabel="direction 2")
    save(figure, output_dir(), "als")
    plt.close(figure)


def spread(points, n):
    """Places of n points far from each other, so that their titles can be read."""
    scaled = points / (np.abs(points).max(axis=0) + 1e-12)
    chosen = [0]
    while len(chosen) < min(n, len(points)):
        gaps = np.abs(scaled[:, None] - scaled[chosen]) * (1, 4)  # titles are wide and low
        chosen.append(int(gaps.sum(axis=2).min(axis=1).argmax()))
    return chosen


def run(ratings, test, args, name):
    """One split: choose lam, fit, measure, print. Returns what the figure and the folds' mean need."""
    train, tested = ratings.take(~test), ratings.take(test)
    if not len(train[2]) or not len(tested[2]):
        raise SystemExit(f"{len(ratings)} ratings are too few to hold a part of them out.")
    lam, how = args.lam, "given"
    if lam < 0:
        began = time.perf_counter()
        lam, tried = choose_lam(ratings, train, args)
        how = f"best of {', '.join(f'{value:g}' for value, _ in tried)} on an inner split, {time.perf_counter() - began:.1f} s"
        if lam in (tried[0][0], tried[-1][0]):
            how += "; at the grid's edge, so try further with --lam"
    mu, b_u, b_i = fit_biases(*train, len(ratings.user_ids), len(ratings.item_ids), args.bias_lam)
    none = np.zeros((len(b_u), 1), np.float32), np.zeros((len(b_i), 1), np.float32)
    plain = Model(mu, b_u, b_i, *none, ratings.low, ratings.high)
    rows = {
        "global mean": errors(np.full(len(tested[2]), mu), tested[2]),
        "biases only": errors(plain.predict(*tested[:2]), tested[2]),
    }
    history, seconds = [], None
    if args.engine == "spark":
        model, seconds = spark_fit(ratings, train, args, lam)
    else:
        file = Path(args.save) if args.save else None
        key = digest(train, args, lam) if file else None
        resume = read_factors(file, key) if file else None
        if resume:
            print(f"{file}: going on after iteration {resume[0]}")

        def watch(model, iteration, *_):
            history.append((iteration, *(errors(model.predict(*part[:2]), part[2])[0] for part in (train, tested))))
            if file:
                write_factors(file, ratings, model, iteration, key)

        model = fit(ratings, train, args, lam=lam, watch=watch, resume=resume)
    rows[f"ALS, rank {args.rank}, lam {lam:g}"] = errors(model.predict(*tested[:2]), tested[2])
    print(f"\n{name}: {len(train[2]):,} to train on, {len(tested[2]):,} to test; lam {lam:g} ({how})")
    print(f"  {'':<28}{'RMSE':>8}{'MAE':>8}")
    for row, (rmse, mae) in rows.items():
        print(f"  {row:<28}{rmse:8.4f}{mae:8.4f}")
    if ratings.floor:
        print(f"  {'noise floor':<28}{ratings.floor:8.4f}{ratings.floor * np.sqrt(2 / np.pi):8.4f}")
    if seconds:
        print(f"  Spark: {seconds / args.iterations:.3f} s an iteration, collecting the factors included")
    return train, tested, lam, model, rows, history


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, (Args,), argv=argv)
    args.threads = args.threads or len(os.sched_getaffinity(0))
    try:
        ranks = sorted({int(rank) for rank in args.ranks})
    except ValueError:
        raise SystemExit(f"--ranks {' '.join(args.ranks)}: give whole numbers.") from None
    if min(args.rank, args.iterations, *ranks) < 1 or not 0 < args.test_share < 1 or args.bias_lam < 0:
        raise SystemExit(
            "--rank, --ranks and --iterations are at least 1, --test_share between 0 and 1, --bias_lam not below 0."
        )
    if args.save and args.folds:
        raise SystemExit("--save keeps the factors of one split: leave --folds out.")
    source = find_source(args.data)
    if args.folds and not source:
        raise SystemExit("--folds: the synthetic set has none. Give ml-100k as --data.")
    ratings = read_ratings(source) if source else synthetic(seed=args.seed)
    print(
        f"{ratings.origin}\n{len(ratings):,} ratings, {len(ratings.user_ids):,} users, {len(ratings.item_ids):,} films"
    )
    for note in ratings.notes:
        print(f"note: {note}")
    tests = read_folds(source, ratings) if args.folds else [np.random.default_rng(args.seed).random(len(ratings)) < args.test_share]  # fmt: skip
    results = [run(ratings, test, args, f"fold {n}" if args.folds else "split") for n, test in enumerate(tests, 1)]
    if args.folds:
        print("\nmean of the folds")
        for index, label in enumerate(("global mean", "biases only", f"ALS, rank {args.rank}")):
            rmse, mae = np.mean([list(result[4].values())[index] for result in results], axis=0)
            print(f"  {label:<28}{rmse:8.4f}{mae:8.4f}")

    train, tested, lam, model, rows, history = results[-1]
    curve = []
    for rank in ranks if args.engine == "numpy" else ():
        other = fit(ratings, train, args, rank=rank, lam=lam, iterations=min(8, args.iterations))
        curve.append((rank, errors(other.predict(*tested[:2]), tested[2])[0]))
    if curve:
        print(
            "\nrank  "
            + "".join(f"{rank:8d}" for rank, _ in curve)
            + "\nRMSE  "
            + "".join(f"{rmse:8.4f}" for _, rmse in curve)
        )
    user = args.user
    if user is None:
        user = int(ratings.user_ids[np.bincount(train[0]).argmax()])
    recommend(ratings, model, train, user)
    draw(ratings, train, history, rows, curve, model, args.engine)


if __name__ == "__main__":
    main()
