"""Checks an exercise on this machine:  make check EX=alpaca/2   (without EX: the list of all)

The file runs in a process of its own, with a time limit. checks.py of each folder knows the right results, mostly from the
folder's own code, and the usual mistakes: a file that makes one of these gets its hint. No answer is printed.
"""

import argparse
import copy
import faulthandler
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = [
    "math_demos",
    "alpaca",
    "medical",
    "domain_mix",
    "lora_variants",
    "continual",
    "rlhf_ppo",
    "preference",
    "r1_grpo",
    "s1_scaling",
    "vl_insurance",
    "deploy",
]
SECONDS = 20  # of the student's own code; a right one takes less than one
WHOLE = 55  # seconds for all of it, imports of the folder's code too

SAYS = {
    "en": {
        "right": "right: {right} of {of} cases",
        "all": "right: all {of} cases. The real thing: {code}",
        "call": "wrong: {call}",
        "hint": "hint:  {hint}",
        "at": " at {at}",
        "none": "it returns None: is there a return yet?",
        "type": "it returns {kind}{at}, expected {wanted}",
        "length": "it returns {count} items{at}, expected {wanted}",
        "keys": "it returns the keys {keys}{at}; these are not the right ones",
        "value": "it returns {value}{at}, which is {how}",
        "low": "too small", "high": "too large", "other": "not right",
        "raised": "line {line}: {error}",
        "blank": "nothing is there yet: write your code at `# your code here`.",
        "unpredicted": "PREDICTION is None: write your number first, then run this again.",
        "number": "PREDICTION is {value!r}: expected a number.",
        "close": "right: measured {truth:.3g}, you said {value:g}. The real thing: {code}",
        "far": "wrong: you said {value:g}, which is {how} by {off:.3g} ({within:g} would be close enough)",
        "missing": "wrong: the file has no {name}: do not rename it.",
        "syntax": "wrong: line {line} cannot be read: {error}",
        "endless": "wrong: line {line} was still running after {seconds:g} seconds: a loop that never ends?",
        "ended": "wrong: the file ended Python before it could be checked: no exit() and no quit().",
        "slow": "no result after {seconds:g} seconds: the machine is busy. Once more?",
    },
    "zh": {
        "right": "正确：{of} 个用例中对了 {right} 个",
        "all": "正确：{of} 个用例全对。实际代码：{code}",
        "call": "错误：{call}",
        "hint": "提示：{hint}",
        "at": "（位置 {at}）",
        "none": "返回了 None：写 return 了吗？",
        "type": "返回了 {kind}{at}，应为 {wanted}",
        "length": "返回了 {count} 项{at}，应为 {wanted} 项",
        "keys": "返回的键是 {keys}{at}，不对",
        "value": "返回了 {value}{at}，{how}",
        "low": "太小", "high": "太大", "other": "不对",
        "raised": "第 {line} 行：{error}",
        "blank": "还没有代码：请写在 `# your code here` 处。",
        "unpredicted": "PREDICTION 是 None：先写下你的数字，再运行一次。",
        "number": "PREDICTION 是 {value!r}：应为一个数字。",
        "close": "正确：测得 {truth:.3g}，你写的是 {value:g}。实际代码：{code}",
        "far": "错误：你写的是 {value:g}，{how}，差 {off:.3g}（差 {within:g} 以内算对）",
        "missing": "错误：文件里没有 {name}：不要改名。",
        "syntax": "错误：第 {line} 行无法解析：{error}",
        "endless": "错误：第 {line} 行运行 {seconds:g} 秒还没有结束：是死循环吗？",
        "ended": "错误：文件在检查之前就退出了 Python：不要用 exit() 和 quit()。",
        "slow": "{seconds:g} 秒内没有结果：机器太忙。再试一次？",
    },
}  # fmt: skip


@dataclass
class Function:
    """An exercise in which a function is written."""

    name: str
    truth: object  # the right function, from the folder's code where that has it
    cases: list  # tuples of arguments
    wrong: list  # (a usual mistake, as a function; its hint in English; in Chinese)
    hint: tuple  # for every other mistake, in English and in Chinese
    code: str  # where the folder does it
    near: float = 1e-6


@dataclass
class Number:
    """An exercise in which a number is predicted, and then measured."""

    measure: object  # () -> the number
    within: float  # so near is right
    wrong: list  # ((from, to), hint in English, in Chinese)
    hint: tuple
    code: str
    name: str = "PREDICTION"


# -- comparing


def plain(value):
    """Arrays and tensors as lists, tuples too: what is compared are numbers and texts."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def difference(yours, right, near, at=""):
    """(what is to be said, its numbers) of the first difference of two plain values; None where there is none."""
    if yours is None and right is None:
        return None
    numbers = [isinstance(each, (int, float)) for each in (yours, right)]
    if all(numbers):
        same = yours == right or math.isnan(yours) and math.isnan(right)
        if same or math.isfinite(yours) and math.isfinite(right) and abs(yours - right) <= near * max(1, abs(right)):
            return None
        sized = not at or isinstance(right, float)  # a token's number is neither large nor small
        how = "low" if sized and yours < right else "high" if sized and yours > right else "other"
        return "value", dict(value=f"{yours:.6g}", at=at, how=how)
    if yours is None and not at:
        return "none", {}
    if any(numbers) or type(yours) is not type(right):
        kind, wanted = (type(each).__name__ if each is not None else "None" for each in (yours, right))
        return "type", dict(kind=kind, at=at, wanted=wanted)
    if isinstance(right, list):
        for place, (one, other) in enumerate(zip(yours, right, strict=False)):
            if found := difference(one, other, near, f"{at}[{place}]"):
                return found
        if len(yours) != len(right):
            return "length", dict(count=len(yours), at=at, wanted=len(right))
        return None
    if isinstance(right, dict):
        if set(yours) != set(right):
            return "keys", dict(keys=short(sorted(map(str, yours))), at=at)
        return next(filter(None, (difference(yours[key], right[key], near, f"{at}[{key!r}]") for key in right)), None)
    return None if yours == right else ("value", dict(value=short(yours), at=at, how="other"))


def short(value, most=150):
    if callable(value):
        return value.__name__
    text = " ".join(repr(plain(value)).split())
    text = re.sub(r"-?\d+\.\d{5,}(?:e-?\d+)?", lambda number: f"{float(number[0]):.4g}", text)
    return text if len(text) <= most else text[: most - 2] + " …"


def outcome(function, arguments):
    """What a function gives for one case: {"value"} or {"error", "line"}."""
    try:
        return {"value": plain(function(*copy.deepcopy(arguments)))}
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}".strip(": "), "trace": error.__traceback__}


def alike(one, other, near):
    if "error" in one or "error" in other:
        return one.get("error", "").split(":")[0] == other.get("error", "").split(":")[0]
    return not difference(one["value"], other["value"], near)


# -- judging, in the child


def line_of(trace, file):
    """The last line of the student's file in a traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(file)]
    return lines[-1] if lines else 0


def judge_function(task, student, file, limit):
    """[(what is to be said, its numbers)] of a function."""
    right = [
        outcome(task.truth, case) for case in task.cases
    ]  # first, and not in the student's time: it may load PyTorch
    assert all("value" in each for each in right), right
    with limit:
        given = [outcome(student[task.name], case) for case in task.cases]
    good = [alike(one, other, task.near) for one, other in zip(given, right, strict=True)]
    if all(good):
        return [("all", dict(of=len(good), code=task.code))]
    if all(each.get("value", 0) is None for each in given):
        return [("blank", {})]
    first = good.index(False)
    call = f"{task.name}({', '.join(short(each, 60) for each in task.cases[first])})"
    if "error" in given[first]:
        seen = "raised", dict(line=line_of(given[first]["trace"], file), error=given[first]["error"])
    else:
        seen = difference(given[first]["value"], right[first]["value"], task.near)
    hints = task.hint
    for mistake, *said in task.wrong:
        if all(alike(one, outcome(mistake, case), task.near) for one, case in zip(given, task.cases, strict=True)):
            hints = said
            break
    return [("right", dict(right=sum(good), of=len(good))), ("call", dict(call=call)), seen, ("hint", dict(hint=hints))]


def judge_number(task, student):
    value = plain(student[task.name])
    if value is None:
        return [("unpredicted", {})]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return [("number", dict(value=value))]
    truth = float(task.measure())
    if abs(value - truth) <= task.within:
        return [("close", dict(truth=truth, value=value, code=task.code))]
    how = "low" if value < truth else "high"
    hints = next((said for (low, high), *said in task.wrong if low <= value <= high), task.hint)
    return [("far", dict(value=value, how=how, off=abs(value - truth), within=task.within)), ("hint", dict(hint=hints))]


def judge(task, file, limit):
    """What is to be said of a file. limit: its code may take so many seconds; then this process ends."""
    student = {"__name__": "exercise", "__file__": str(file)}
    try:
        code = compile(file.read_bytes(), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        return [("syntax", dict(line=getattr(error, "lineno", None) or "?", error=getattr(error, "msg", error)))]
    with limit:
        found = outcome(lambda: exec(code, student), ())
    if "error" in found:
        return [("raised", dict(line=line_of(found["trace"], file), error=found["error"]))]
    if task.name not in student or isinstance(task, Function) and not callable(student[task.name]):
        return [("missing", dict(name=task.name))]
    return judge_number(task, student) if isinstance(task, Number) else judge_function(task, student, file, limit)


class Limit:
    """Ends the process after so many seconds, and says in a file where it was. Also where Python's own loop never comes
    back: the watch is a thread that faulthandler keeps outside of it."""

    def __init__(self, seconds, file):
        self.seconds, self.file = seconds, file

    def __enter__(self):
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def __exit__(self, *_):
        faulthandler.cancel_dump_traceback_later()


def child(out, exercise, file, seconds):
    """What the process of an exercise does: the verdict is written to the file `out` as JSON."""
    folder, number = exercise.split("/")
    sys.path[:0] = [str(HERE / folder), str(ROOT / folder)]
    import checks
    from common import paths

    paths.load_env()
    task = getattr(checks, f"task_{number}")()
    with open(f"{out}.trace", "w") as trace:
        said = judge(task, Path(file), Limit(float(seconds), trace))
    Path(out).write_text(json.dumps(said, default=str), "utf-8")


# -- asking and telling, in the parent


def verdict(exercise, file, seconds=SECONDS):
    """[(what is to be said, its numbers)] of a file, which runs in a process of its own."""
    code = "import sys; sys.path[0] = sys.argv.pop(1); import check; check.child(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "verdict.json"
        command = [sys.executable, "-c", code, HERE, out, exercise, Path(file).resolve(), str(seconds)]
        offline = dict(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", PYTHONIOENCODING="utf-8")
        try:
            done = subprocess.run(
                [str(each) for each in command],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=WHOLE,
                env=os.environ | offline,
            )
        except subprocess.TimeoutExpired:
            return [("slow", dict(seconds=WHOLE))]
        if out.exists():
            return [tuple(each) for each in json.loads(out.read_text("utf-8"))]
        trace = out.with_name(out.name + ".trace")
        told = trace.read_text("utf-8", "replace") if trace.exists() else ""
        if "Timeout" in told:
            lines = re.findall(rf'File "{re.escape(str(Path(file).resolve()))}", line (\d+)', told)
            return [("endless", dict(line=lines[0] if lines else "?", seconds=seconds))]
        if done.stderr.strip():  # the check itself is broken, or what it needs is not installed
            raise SystemExit(f"{exercise} could not be checked: {done.stderr.strip().splitlines()[-1]}")
        return [("ended", {})]


def told(said, lang):
    """The lines of a verdict."""
    words, lines = SAYS[lang], []
    for what, numbers in said:
        numbers = dict(numbers)
        if "how" in numbers:
            numbers["how"] = words[numbers["how"]]
        if "at" in numbers:
            numbers["at"] = words["at"].format(**numbers) if numbers["at"] else ""
        if "hint" in numbers:
            numbers["hint"] = numbers["hint"][lang == "zh"]
        if "seconds" in numbers:
            numbers["seconds"] = float(numbers["seconds"])
        line = words[what].format(**numbers)
        lines.append("  " + (numbers["error"] if what == "raised" and not numbers["line"] else line))
    return "\n".join(lines)


def title(file):
    """(English, Chinese) of an exercise: the first line of its docstring."""
    first = file.read_text("utf-8").split('"""')[1].strip().splitlines()[0]
    return tuple(part.strip() for part in first.split("·"))


def exercises():
    """{"alpaca/1": its file}, in the course's order."""
    return {f"{folder}/{n}": HERE / folder / f"{n}.py" for folder in FOLDERS for n in range(1, 6)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exercise", nargs="?", help="as alpaca/2; without one, the list of all")
    parser.add_argument("--file", type=Path, help="another file than course/exercises/FOLDER/N.py, as a solution")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="most that the file's own code may take")
    args = parser.parse_args(argv)
    sys.path.append(str(ROOT))
    from common import screen

    lang, known = screen.language(), exercises()
    if not args.exercise:
        for name, file in known.items():
            if file.exists():
                print(f"{name:<15} {title(file)[lang == 'zh']}")
        print({"en": "\nmake check EX=alpaca/1", "zh": "\n例如：make check EX=alpaca/1"}[lang])
        return
    name = args.exercise.removeprefix("course/exercises/").removesuffix(".py").strip("/")
    if name not in known:
        raise SystemExit(f"{args.exercise}: no such exercise. FOLDER/N: {', '.join(FOLDERS)}; 1 to 5.")
    file = args.file or known[name]
    if not file.is_file():
        raise SystemExit(f"{file}: no such file.")
    print(f"{name}  {title(known[name])[lang == 'zh']}", flush=True)
    said = verdict(name, file, args.seconds)
    print(told(said, lang))
    if said[0][0] not in ("all", "close"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
