"""Votes and thumbs -> rows for preference training; and the statistics that say when there are enough of them.

    compare_web.py  votes.jsonl   which of two answers is better?   ->  pairs.jsonl  prompt, chosen, rejected   (DPO, reward)
    ab_proxy.py     ab.jsonl      thumbs up or down for one answer  ->  kto.jsonl    prompt, completion, label  (KTO)

A vote for one of two answers is a preference pair as it stands. Ties say nothing about an order and are left out; so are
answers that are empty, equal, or broken text. Everything left out is counted. ab.jsonl has texts only with --log_prompts.

    python votes.py outputs/deploy/votes/*/*.jsonl --out outputs/preferences
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from statistics import NormalDist

from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import text_fault

Z = NormalDist().inv_cdf(0.975)  # of a 95% interval


# -- statistics


def wilson(count: int, n: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927). It stays within 0 to 1 and is right for few votes, as p +- 1.96 s is not."""
    if not n:
        return 0.0, 1.0
    share, spread = count / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(count: int, n: int, other: int, m: int) -> tuple[float, float]:
    """95% interval of count / n - other / m, from both Wilson intervals (Newcombe 1998, method 10)."""
    if not n or not m:
        return -1.0, 1.0
    (low, high), (least, most), p, q = wilson(count, n), wilson(other, m), count / n, other / m
    return p - q - math.hypot(p - low, most - q), p - q + math.hypot(high - p, q - least)


def needed(p: float, q: float, power=0.8) -> int:
    """How many thumbs each arm needs so that shares p and q are told apart: 5% false alarms, 80% of the differences found."""
    mean, beta = (p + q) / 2, NormalDist().inv_cdf(power)
    wide = Z * math.sqrt(2 * mean * (1 - mean)) + beta * math.sqrt(p * (1 - p) + q * (1 - q))
    return math.ceil((wide / (p - q)) ** 2)


def needed_votes(share: float, power=0.8) -> int:
    """How many decided votes tell a win rate of `share` from 1/2, at the same error rates."""
    wide = Z / 2 + NormalDist().inv_cdf(power) * math.sqrt(share * (1 - share))
    return math.ceil((wide / (share - 0.5)) ** 2)


# -- the files


def append(file: Path, row: dict):
    """Add one line, and wait until it is on the disk. Several processes may write; a line that a kill cut off is closed."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": round(time.time(), 3), **row}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    with FileLock(file.with_name(f".{file.name}.lock")), open(file, "ab+") as log:
        if log.seek(0, os.SEEK_END) and (log.seek(-1, os.SEEK_END) or log.read(1) != b"\n"):
            line = b"\n" + line
        log.write(line)
        log.flush()
        os.fsync(log.fileno())


def read(file: Path) -> tuple[list[dict], int]:
    """(rows, lines that are none) of a log. Read as bytes: a line that was cut off may end inside a character."""
    rows, bad = [], 0
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                rows.append(row)
            else:
                bad += 1
    return rows, bad


def told(votes: list[dict], name: str) -> list[str]:
    """The winners of the votes on a model, "base", `name` or "tie": one for each pair of answers that was shown."""
    first = {}
    for vote in votes:
        if vote.get("winner") in ("base", name, "tie") and name in (vote.get("answers") or ()):
            first.setdefault(vote["id"], vote["winner"])
    return list(first.values())


def result(log: list[dict], name: str, needed: int) -> dict:
    """Counts, shares of thumbs up with 95% intervals, their difference, and a verdict once there are enough.

    A user counts once, by the first answer that has a thumb; the first `needed` users of each arm decide.
    """
    rows = {row["id"]: row for row in log if row.get("arm") in ("base", name)}
    thumbs = {row["id"]: row["thumb"] for row in log if row.get("thumb") in ("up", "down")}  # of an answer the last one
    found, firsts = {}, {}
    for each, thumb in thumbs.items():
        if each in rows:
            firsts.setdefault((rows[each]["arm"], rows[each].get("user", each)), thumb)
    first = {}
    for arm in ("base", name):
        given = [thumb for (of, _), thumb in firsts.items() if of == arm]
        seconds = sorted(row["seconds"] for row in log if row.get("arm") == arm)
        up, n, first[arm] = given.count("up"), len(given), given[:needed].count("up")
        found[arm] = {"answers": len(seconds), "thumbs": n, "up": up, "interval": wilson(up, n),
                      "median_seconds": seconds[len(seconds) // 2] if seconds else None}  # fmt: skip
    difference = newcombe(found[name]["up"], found[name]["thumbs"], found["base"]["up"], found["base"]["thumbs"])
    missing = max(0, needed - min(each["thumbs"] for each in found.values()))
    verdict = f"not enough users with a thumb yet: {missing} more for the arm that has fewer"
    if not missing:
        low, high = newcombe(first[name], needed, first["base"], needed)
        verdict = f"{name} is better" if low > 0 else "base is better" if high < 0 else "no difference was found"
    return {"arms": found, "difference": difference, "needed": needed, "verdict": verdict}


# -- rows for training


def talk(row) -> list[dict] | None:
    """The messages of a row, if they are usable as a prompt."""
    messages = row.get("messages")
    fine = isinstance(messages, list) and messages and all(
        isinstance(each, dict) and each.get("role") in ("system", "user", "assistant") and usable(each.get("content"))
        for each in messages)  # fmt: skip
    return messages if fine and messages[-1]["role"] == "user" else None


def usable(text) -> bool:
    return isinstance(text, str) and bool(text.strip()) and not text_fault(text)


def export(rows: list[dict]) -> tuple[list[dict], list[dict], Counter]:
    """(DPO pairs, KTO rows, {why: how many were left out}) of the lines of all files."""
    pairs, rated, out, seen = [], [], Counter(), set()
    answers = {row["id"]: row for row in rows if "arm" in row}
    thumbs = {row["id"]: row["thumb"] for row in rows if row.get("thumb") in ("up", "down")}  # the last one counts
    for row in rows:
        if "winner" not in row:
            continue
        if row["id"] in seen:
            out["voted on twice"] += 1
            continue
        seen.add(row["id"])
        if row["winner"] == "tie":
            out["tie"] += 1
            continue
        both = row.get("answers") if isinstance(row.get("answers"), dict) else {}
        best, worst = both.get(row["winner"]), [text for name, text in both.items() if name != row["winner"]]
        if not talk(row) or len(worst) != 1 or not all(isinstance(text, str) for text in (best, *worst)):
            out["no usable prompt or answers"] += 1
        elif not best.strip() or not worst[0].strip():
            out["empty answer"] += 1
        elif best.strip() == worst[0].strip():
            out["equal answers"] += 1
        elif not usable(best) or not usable(worst[0]):
            out["broken text or a control token"] += 1
        else:
            pairs.append({"prompt": talk(row), "chosen": best.strip(), "rejected": worst[0].strip()})
    for name, thumb in thumbs.items():
        row = answers.get(name)
        if row is None:
            out["thumb for an unknown answer"] += 1
        elif "answer" not in row:
            out["thumb without texts (ab_proxy.py --log_prompts)"] += 1
        elif isinstance(row["answer"], str) and not row["answer"].strip():
            out["empty answer"] += 1
        elif not talk(row) or not usable(row["answer"]):
            out["broken text or a control token"] += 1
        else:
            rated.append({"prompt": talk(row), "completion": row["answer"].strip(), "label": thumb == "up"})
    return pairs, rated, out


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="votes.jsonl and ab.jsonl, of one run or several"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where pairs.jsonl and kto.jsonl go")
    args = parser.parse_args(argv)
    load_env()
    rows = []
    for file in args.files:
        if not file.is_file():
            raise SystemExit(f"{file}: no such file.")
        found, bad = read(file)
        rows += found
        print(f"{file}: {len(found):,} lines" + (f", {bad:,} that cannot be read (cut off?)" if bad else ""))
    pairs, rated, out = export(rows)
    for why, count in out.most_common():
        print(f"left out: {count:,} {why}")
    if not pairs and not rated:
        raise SystemExit("no vote for one of two answers and no thumb with texts in these files: nothing was written.")
    args.out.mkdir(parents=True, exist_ok=True)
    parts = [(new_file(args.out / name), made) for name, made in (("pairs.jsonl", pairs), ("kto.jsonl", rated)) if made]
    for file, made in parts:
        write_lines(file, made)
        print(f"{len(made):,} rows: {file}")


if __name__ == "__main__":
    main()
