"""A table of ratings as the product of two thin ones, by alternating least squares (ALS): the method.

    r(u, i) ~ mu + b_u + b_i + p_u . q_i            minimise  sum (r - ...)^2 + lam (|P|^2 + |Q|^2)

With Q fixed, each p_u is a small ridge regression of its own; with P fixed, each q_i. Every half-step solves its half
exactly, so the objective never rises. `half_step` says it as the formula does, one row after the other. `half_step_fast`,
which is what runs, solves rows of like length together: the same numbers, three times as fast.

Departures from the textbook: the biases are fitted first and stay (the factors explain what they leave), and lam is
chosen on ratings held out of the training part, never on the test part.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

# Plain lam is in ratings; with --weighted it is multiplied by the row's number of ratings, so it is smaller.
GRID = {False: (1, 2, 4, 7, 10, 15, 20, 30), True: (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)}
BATCH = 1 << 15  # ratings of a batch: with 20 factors each 2.6 MB, about what a core's cache holds
PADDING = 1.1  # a batch's longest row over its shortest


def half_step(side, fixed, solved, ridge):
    """Solve every row of one side: p = (Q'Q + ridge I)^-1 Q'r over its own ratings. Writes into `solved`.

    side: from batches(). fixed, solved: (n + 1, k), the last row zero. ridge: (n,), above 0 for rows with fewer ratings than
    factors. Returns sum of p . Q'r: at the optimum, sum r^2 less this is the rows' part of the objective, so it comes for
    free.
    """
    gained = 0.0
    for rows, cols, values in side:
        for row, rated, r in zip(rows, cols, values, strict=True):
            Q = fixed[rated]  # padding picks the zero row, which adds nothing
            right = Q.T @ r
            solved[row] = np.linalg.solve(Q.T @ Q + ridge[row] * np.eye(len(right), dtype=Q.dtype), right)
            gained += float(solved[row] @ right)
    return gained


def half_step_fast(side, fixed, solved, ridge, pool=None):
    """The fast one: what `half_step` does, with one gather, one stacked product and one stacked solve for each batch."""

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


def batches(rows, cols, values, n_rows, n_cols):
    """Ratings grouped by row, rows of like length together: a list of (rows (B,), cols (B, L), values (B, L)).

    Short rows are padded with column n_cols, where factors are zero, and value 0: they add nothing to any sum. Rows
    without ratings are in no batch. Takes 8 bytes per rating, plus padding.
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


def start(n_users, n_items, rank, dtype=np.float32, seed=0):
    """P zero and Q small and random, each with a zero row behind the last, which stands for the unknown."""
    P, Q = np.zeros((n_users + 1, rank), dtype), np.zeros((n_items + 1, rank), dtype)
    Q[:-1] = 0.1 * np.random.default_rng(seed).standard_normal((n_items, rank))
    return P, Q


def als(by_user, by_item, P, Q, lam, iterations, weighted=False, threads=1, first=0, plain=False):
    """Alternate; P and Q change in place. Yields (iteration, objective after P, objective after Q), in float64.

    by_user, by_item: batches() of the residuals, rows = users and cols = items, and the other way round. plain: by
    `half_step`, for who wants to see that it is the same.
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
        step = half_step if plain else partial(half_step_fast, pool=pool if threads > 1 else None)
        for iteration in range(first + 1, iterations + 1):
            after_p = squares - step(by_user, Q, P, ridges[0]) + penalty(Q, ridges[1])
            after_q = squares - step(by_item, P, Q, ridges[1]) + penalty(P, ridges[0])
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
    inner, held = inner_split(train, args.split_seed)
    tried = []
    for lam in GRID[args.weighted]:
        model = fit(ratings, inner, args, lam=lam, iterations=min(8, args.iterations))
        tried.append((lam, errors(model.predict(*held[:2]), held[2])[0]))
    return min(tried, key=lambda pair: pair[1])[0], tried


def singular_values(P, Q):
    """Of P Q', without forming it: thin QR of both leaves a k x k matrix. Returns U (n, k), s, V (m, k)."""
    (qp, rp), (qq, rq) = np.linalg.qr(P.astype(np.float64)), np.linalg.qr(Q.astype(np.float64))
    u, s, vt = np.linalg.svd(rp @ rq.T)
    return qp @ u, s, qq @ vt.T
