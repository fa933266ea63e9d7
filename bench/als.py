"""Alternating least squares: seconds an iteration, RMSE and memory, the same ratings and threads for each.

    pip install cmfrec==3.5.1.post14 implicit==0.7.3    (both optional: without them they are left out)
    python bench/als.py                          # 1M ratings, each contender three times in turn, about 4 minutes
    python bench/als.py --curve                  # 100K to 25M, about 15 minutes; the largest once, the fastest only
    python bench/als.py --plot                   # table and picture again from the results

Synthetic ratings in the shapes of MovieLens 100K, 1M, 10M and 25M (users x films), 90% to train on, rank 20, lam 15,
8 iterations, float32. One process a measurement, so that the peak memory is its own. `implicit` minimises another
objective (clicks, not ratings): its speed is compared, its RMSE is not.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "als.json"
SHAPES = {"100K": (100_000, 943, 1_682), "1M": (1_000_000, 6_040, 3_706), "10M": (10_000_000, 71_567, 10_681),
          "25M": (25_000_000, 162_541, 59_047)}  # fmt: skip
CONTENDERS = ("ours", "loop", "cmfrec_cholesky", "cmfrec_cg", "implicit_cholesky", "implicit_cg")
RANK, LAM, ITERATIONS = 20, 15.0, 8


def math_demos():
    sys.path.insert(0, str(HERE.parent / "math_demos"))
    import als

    return als


def make(size, folder):
    """Write the ratings of one size, once for all contenders."""
    import numpy as np

    math_demos()
    from data import synthetic

    n, n_users, n_items = SHAPES[size]
    ratings = synthetic(n, n_users, n_items, seed=1)
    test = np.random.default_rng(0).random(len(ratings)) < 0.1
    for name, part in (("train", ratings.take(~test)), ("test", ratings.take(test))):
        for column, array in zip(("users", "items", "values"), part, strict=True):
            np.save(folder / f"{name}_{column}.npy", array)
    np.save(folder / "shape.npy", [n_users, n_items])


def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(contender, folder, threads, iterations):
    """One contender in this process: a dict of seconds, RMSE and bytes."""
    module = math_demos()
    import numpy as np

    train, test = (tuple(np.load(folder / f"{part}_{column}.npy") for column in ("users", "items", "values"))
                   for part in ("train", "test"))  # fmt: skip
    n_users, n_items = map(int, np.load(folder / "shape.npy"))
    if contender.startswith("cmfrec"):
        import scipy.sparse
        from cmfrec import CMF
    elif contender.startswith("implicit"):
        import scipy.sparse
        from implicit.als import AlternatingLeastSquares
    before, rmse = rss(), None
    if contender in ("ours", "loop"):
        began = time.perf_counter()
        users, items, values = train
        P, Q = module.start(n_users, n_items, RANK)
        if contender == "ours":
            biases, *sides = module.prepare(train, n_users, n_items, 5.0)
            steps = module.als(*sides, P, Q, LAM, iterations, threads=threads)
        else:
            biases = mu, b_u, b_i = module.fit_biases(*train, n_users, n_items)
            left = (values - mu - b_u[users] - b_i[items]).astype(np.float32)
            steps = row_loop(users, items, left, P, Q, iterations)
        times = [time.perf_counter()]
        setup = times[0] - began
        for _ in steps:
            times.append(time.perf_counter())
        seconds = (times[-1] - times[2]) / (iterations - 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        model = module.Model(*biases, P, Q, values.min(), values.max())
        rmse = module.errors(model.predict(*test[:2]), test[2])[0]
    else:
        matrix = scipy.sparse.coo_matrix((train[2], (train[0], train[1])), shape=(n_users, n_items))
        if contender.startswith("implicit"):
            matrix = matrix.tocsr()
        took = {}
        for count in (2, iterations):  # the difference is iterations alone, without what each fit begins with
            began = time.perf_counter()
            if contender.startswith("cmfrec"):
                fitted = CMF(
                    k=RANK, lambda_=LAM, method="als", use_cg=contender.endswith("cg"), niter=count, nthreads=threads,
                    use_float=True, precompute_for_predictions=False, finalize_chol=False, verbose=False,
                )  # fmt: skip
                fitted.fit(matrix)
            else:
                fitted = AlternatingLeastSquares(
                    RANK, regularization=0.01, use_cg=contender.endswith("cg"), iterations=count, num_threads=threads
                )
                fitted.fit(matrix, show_progress=False)
            took[count] = time.perf_counter() - began
        setup, seconds = None, (took[iterations] - took[2]) / (iterations - 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if contender.startswith("cmfrec"):
            predicted = fitted.predict(*test[:2]).clip(train[2].min(), train[2].max())
            rmse = module.errors(np.where(np.isfinite(predicted), predicted, train[2].mean()), test[2])[0]
    return dict(seconds=seconds, rmse=rmse, setup=setup, extra_bytes=peak - before, train=len(train[2]), peak=peak)


def row_loop(users, items, values, P, Q, iterations):
    """What a first version looks like: one row after the other, float32, one product and one solve each."""
    import numpy as np

    sides = []
    for rows, cols, factors in ((users, items, P), (items, users, Q)):
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows, minlength=len(factors) - 1))
        sides.append((cols[order], values[order], np.concatenate([[0], ends])))
    ridge = LAM * np.eye(RANK, dtype=P.dtype)
    for iteration in range(iterations):
        for (cols, r, ends), mine, other in ((sides[0], P, Q), (sides[1], Q, P)):
            for row in range(len(mine) - 1):
                x = other[cols[ends[row] : ends[row + 1]]]
                mine[row] = np.linalg.solve(x.T @ x + ridge, x.T @ r[ends[row] : ends[row + 1]])
        yield iteration


def call(contender, folder, threads, iterations):
    """measure() in a process of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--child", contender, str(folder), str(threads), str(iterations)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return print(f"{contender}: failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def installed(contender):
    try:
        return contender in ("ours", "loop") or bool(importlib.metadata.version(contender.split("_")[0]))
    except importlib.metadata.PackageNotFoundError:
        return False


def bench(sizes, threads, repeats):
    contenders = [name for name in CONTENDERS if installed(name)]
    if missing := set(CONTENDERS) - set(contenders):
        print(f"not installed, left out: {', '.join(sorted(missing))}")
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, "--make", size, folder], check=True)
            large = SHAPES[size][0] > 2_000_000
            counts = dict.fromkeys(contenders, ITERATIONS if not large else 5)
            slow = ("loop",) if size == "10M" else ("loop", "cmfrec_cholesky", "implicit_cholesky")
            seen = {name: [] for name in contenders if not large or name not in slow}
            for _ in range(repeats if not large else 1):
                for name in seen:  # in turn, so that what else the machine does meets all of them
                    if result := call(name, Path(folder), threads, counts[name]):
                        seen[name].append(result)
            for name, results in seen.items():
                if results:
                    times = sorted(result["seconds"] for result in results)
                    rows.append(dict(
                        size=size, contender=name, threads=threads, iterations=counts[name], train=results[0]["train"],
                        seconds=statistics.median(times), low=times[0], high=times[-1], repeats=len(times),
                        rmse=results[0]["rmse"], setup=results[0]["setup"],
                        extra_bytes=min(result["extra_bytes"] for result in results),
                        peak=max(result["peak"] for result in results),
                    ))  # fmt: skip
                    print(row(rows[-1]), flush=True)
    return rows


def row(r):
    rmse = f"{r['rmse']:.4f}" if r["rmse"] else "      "
    ratio = r["extra_bytes"] / 12 / r["train"]
    return (f"{r['size']:>5} {r['contender']:<18} {r['threads']} threads {r['seconds']:8.3f} s/iteration "
            f"({r['low']:.3f} to {r['high']:.3f}, {r['repeats']} x)  RMSE {rmse}  peak {r['peak'] / 1e9:5.2f} GB, "
            f"over the ratings {ratio:4.1f} x")  # fmt: skip


def show(results):
    for r in results["rows"]:
        print(row(r))
    print()
    for size, threads in dict.fromkeys((r["size"], r["threads"]) for r in results["rows"]):
        mine = {r["contender"]: r for r in results["rows"] if (r["size"], r["threads"]) == (size, threads)}
        if "ours" in mine:
            others = ", ".join(f"{name} {r['seconds'] / mine['ours']['seconds']:.1f} x"
                               for name, r in mine.items() if name != "ours")  # fmt: skip
            print(f"{size}, {threads} threads, seconds over ours: {others}")


def plot(results):
    sys.path.insert(0, str(HERE.parent / "math_demos"))
    from plots import BLUE, GREEN, GREY, ORANGE, RED, pyplot

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(10, 6), layout="constrained")
    colors = dict(zip(CONTENDERS, (BLUE, GREY, RED, ORANGE, GREEN, "#8456b0"), strict=True))
    most = max(r["threads"] for r in results["rows"])
    for name in CONTENDERS:
        mine = sorted((r["train"], r["seconds"]) for r in results["rows"] if r["contender"] == name and r["threads"] == most)  # fmt: skip
        if mine:
            axis.plot(*zip(*mine, strict=True), "o-", color=colors[name], label=name.replace("_", ", "))
    axis.set(xscale="log", yscale="log", xlabel="training ratings", ylabel="seconds an iteration",
             title=f"ALS, rank {RANK}, {most} threads")  # fmt: skip
    axis.legend()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


def main():
    if sys.argv[1:2] == ["--child"]:
        contender, folder, threads, iterations = sys.argv[2:]
        return print(json.dumps(measure(contender, Path(folder), int(threads), int(iterations))))
    if sys.argv[1:2] == ["--make"]:
        return make(sys.argv[2], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", action="store_true", help="all sizes instead of 1M only")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES)
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.plot:
        results = json.loads(args.out.read_text())
    else:
        sizes = args.sizes or (list(SHAPES) if args.curve else ["1M"])
        rows = [r for threads in args.threads for r in bench(sizes, threads, args.repeats)]
        names = ("numpy", "cmfrec", "implicit")
        versions = {
            name: importlib.metadata.version(name) for name in names if installed(f"{name}_") or name == "numpy"
        }
        results = dict(rows=rows, rank=RANK, lam=LAM, python=platform.python_version(), versions=versions)
        args.out.parent.mkdir(exist_ok=True)
        part = args.out.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1) + "\n")
        part.replace(args.out)
    show(results)
    plot(results)


if __name__ == "__main__":
    main()
