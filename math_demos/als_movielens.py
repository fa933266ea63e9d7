"""Films that a user would like, from other users' ratings: MovieLens as a table of which most is unknown, by ALS.

als.py has the method. Here: one split or ml-100k's folds, lam chosen on an inner split, the error beside that of the mean
and of the biases, films for a user, factors that are saved after each iteration, and a figure.

Nothing at hand:        python als_movielens.py                         (a synthetic set, rank and noise known)
MovieLens as it comes:  python als_movielens.py --data ml-100k.zip      (or a folder, u.data, ratings.dat, ratings.csv)
Its official folds:     python als_movielens.py --data ml-100k.zip --folds
Films for a user:       python als_movielens.py --data ml-latest-small.zip --user 42 --save factors.npz
"""

import hashlib
import json
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

# Set before numpy is imported. The products here are small and many: one thread for each batch of them, not for each.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from als import Model, choose_lam, errors, fit, fit_biases, singular_values
from common.cli import arg, parse
from data import find_source, read_folds, read_ratings, synthetic
from plots import draw_als

DEFAULTS = dict(
    rank=20,  # more pays off with millions of ratings
    iterations=12,  # the held-out error has settled by then
    lam=-1.0,  # the ridge; -1: the best on an inner split
    bias_lam=5.0,  # a film's bias counts fully once it has many more ratings than this
    seed=0,  # of everything drawn at random but the split: the synthetic set, and where the factors begin
)


@dataclass
class Args:
    data: str | None = arg(None, "MovieLens: a file, folder or zip (default: MATH_DEMOS_DATA_DIR, else synthetic)")
    weighted: bool = arg(False, "lam times the row's number of ratings (ALS-WR)")
    test_share: float = arg(0.1, "share of the ratings held out")
    split_seed: int = arg(0, "of the draw which rows are held out")
    folds: bool = arg(False, "ml-100k's own five folds instead, and their mean")
    ranks: list[int] = arg([1, 2, 4, 6, 8, 12, 20, 40], "of the figure's second panel")
    user: int | None = arg(None, "recommend films for this user (default: the one with most ratings)")
    save: str | None = arg(None, "an .npz for the factors, written after each iteration; an unfinished one goes on")
    threads: int = arg(0, "0: as many as there are cores")


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
    history, file = [], Path(args.save) if args.save else None
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
    return train, tested, lam, model, rows, history


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    args.threads = args.threads or cores()
    ranks = sorted(set(args.ranks))
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
    tests = read_folds(source, ratings) if args.folds else [np.random.default_rng(args.split_seed).random(len(ratings)) < args.test_share]  # fmt: skip
    results = [run(ratings, test, args, f"fold {n}" if args.folds else "split") for n, test in enumerate(tests, 1)]
    if args.folds:
        print("\nmean of the folds")
        for index, label in enumerate(("global mean", "biases only", f"ALS, rank {args.rank}")):
            rmse, mae = np.mean([list(result[4].values())[index] for result in results], axis=0)
            print(f"  {label:<28}{rmse:8.4f}{mae:8.4f}")

    train, tested, lam, model, rows, history = results[-1]
    curve = []
    for rank in ranks:
        other = fit(ratings, train, args, rank=rank, lam=lam, iterations=min(8, args.iterations))
        curve.append((rank, errors(other.predict(*tested[:2]), tested[2])[0]))
    print("\nrank  " + "".join(f"{rank:8d}" for rank, _ in curve))
    print("RMSE  " + "".join(f"{rmse:8.4f}" for _, rmse in curve))
    user = args.user
    if user is None:
        user = int(ratings.user_ids[np.bincount(train[0]).argmax()])
    recommend(ratings, model, train, user)
    popular = np.argsort(-np.bincount(train[1], minlength=len(ratings.item_ids)), kind="stable")
    _, spectrum, films = singular_values(model.P[:-1], model.Q[:-1])
    draw_als(ratings, popular, spectrum, films, history, curve, rows["biases only"][0])


if __name__ == "__main__":
    main()
