"""Differences of runs, paired by seed and by held-out row: mean, 95% interval, p by Student's t, and Holm's correction.

Two things differ at random: the seed (where A begins, the order of the rows) and the rows that are measured on. With d[s][i] the
difference for seed s on row i, both count:

    SE^2 = var over seeds of mean_i d[s][i] / S  +  var over rows of mean_s d[s][i] / R

(a little too wide: what is left of a single d is in both). Degrees of freedom by Satterthwaite's formula; three seeds that disagree
leave two, and a t of 4.3. Of many comparisons some look large by chance, so p-values are Holm's (1979).
"""

import math
import statistics


def p_of(t, df) -> float:
    """P(|T| > t) of Student's t: with T = sqrt(df) tan(a) the density is cos(a)^(df - 1), integrated by Simpson's rule."""
    if not math.isfinite(t):
        return 0.0
    low, steps = math.atan(abs(t) / math.sqrt(df)), 400
    width = (math.pi / 2 - low) / steps
    weights = [1 if k in (0, steps) else 4 if k % 2 else 2 for k in range(steps + 1)]
    heights = [max(0.0, math.cos(low + k * width)) ** (df - 1) for k in range(steps + 1)]
    area = sum(w * h for w, h in zip(weights, heights, strict=True)) * width / 3
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * constant * area)


def quantile(df, share=0.95) -> float:
    """t with P(|T| > t) = 1 - share."""
    low, high = 0.0, 1e3
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_of(middle, df) > 1 - share else (low, middle)
    return high


def summary(values) -> dict:
    """mean, half (of the 95% interval), p (that the mean is 0) of values[seed][row]. With one seed the rows alone count."""
    seeds = [statistics.fmean(row) for row in values]
    rows = [statistics.fmean(column) for column in zip(*values, strict=True)]
    parts = [(statistics.variance(each) / len(each), len(each) - 1) for each in (seeds, rows) if len(each) > 1]
    mean, square = statistics.fmean(seeds), sum(part for part, _ in parts)
    if not square:
        return dict(mean=mean, half=0.0, p=1.0 if not mean else 0.0)
    df = square**2 / sum(part**2 / free for part, free in parts)
    return dict(mean=mean, half=quantile(df) * math.sqrt(square), p=p_of(mean / math.sqrt(square), df))


def holm(values: dict) -> dict:
    """name -> p, corrected for there being several: the smallest times their number, the next times one less, ..."""
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(values, key=values.get)):
        largest = max(largest, min(1.0, values[name] * (len(values) - place)))
        corrected[name] = largest
    return corrected
