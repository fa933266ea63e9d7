"""Ask a trained model and its base the same questions, and lay the answers side by side: one page, compare.html.

serve.py answers for both. Asked are held-out rows of the run, greedily; a second call can still give a few other answers,
since what is computed at the same time changes the last bits, and a tie goes the other way. Where the recipe's answers can be
graded (r1_grpo, s1_scaling), what turned from right to wrong, and back, stands at the top: an average that rises hides the
questions that were lost. Words that only one side has are marked.

A page of answers is for reading, not for a verdict: votes that do not know who wrote what are (compare_web.py).

    python serve.py outputs/medical/20261122-101500       (in another terminal; prints its address and key)
    OPENAI_API_KEY=... python compare.py outputs/medical/20261122-101500
    OPENAI_API_KEY=... python compare.py --prompts questions.jsonl --count 40
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asking import Unanswered, ask, served
from common import grading, rows
from common.cli import arg, parse
from common.contract import HELD_OUT
from common.files import read_json, replace_text, write_lines
from common.paths import TASK_DIR, output_dir
from compare_page import LABELS, flip, language, page
from found import contract, name_of, open_run, reads_of, tokenizer_of, with_run

DEFAULTS = dict(
    url="http://127.0.0.1:8000/v1",  # of serve.py; its key comes from OPENAI_API_KEY
    count=12,  # questions
    max_new_tokens=256,  # of an answer
    timeout=300.0,  # seconds for one answer
)
GRADED = ("r1_grpo", "s1_scaling")  # recipes whose rows have an answer that a program can compare
AT_ONCE = 4  # answers that are waited for at the same time

# Runs in a recipe's folder: its own data.py and prompt.py say what was held out, and how it is asked.
ROWS = """
import contextlib, inspect, json, sys
from types import SimpleNamespace
given = json.load(sys.stdin)
sys.path[0] = given["folder"]
with contextlib.redirect_stdout(sys.stderr):
    from common import models, paths
    paths.load_env()
    import data, prompt
    if hasattr(prompt, "IMAGE"):
        raise SystemExit("it asks about pictures, which the server does not take")
    tokenizer = models.load_tokenizer(given["tokenizer"])
    _, held_out = data.load_splits(SimpleNamespace(**given["arguments"]))
    step = max(1, len(held_out) // given["most"])
    options = {"template": given["texts"]} if "template" in inspect.signature(prompt.prompt_ids).parameters else {}
    made = []
    for at in range(0, len(held_out), step):
        row = held_out[at : at + 1].to_pylist()[0] if hasattr(held_out, "to_pylist") else held_out[at]
        asked = row["prompt"] if isinstance(row.get("prompt"), list) else None
        names = ("reference", "output", "answer", "chosen", "response")
        made.append({
            "messages": asked,
            "input_ids": None if asked else prompt.prompt_ids(tokenizer, [row], **options)[0],
            "reference": next((row[name] for name in names if isinstance(row.get(name), str)), ""),
            "gold": row.get("gold", row.get("answer")),
        })
print(json.dumps(made))
"""


@dataclass
class Args:
    adapter: str | None = arg(
        None,
        "a finished run's folder (default: the one that --url serves, else the newest of all recipes); also without the flag",
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    prompts: str | None = arg(
        None,
        "JSON lines with question, prompt or instruction, and reference or answer if there is one (default: held-out rows)",
    )
    out: str | None = arg(None, "the folder for compare.html and compare.jsonl (default: the run's export)")
    lang: Literal["en", "zh"] | None = arg(None, "the page's labels (default: as the locale says)")


# -- the questions


def run_of(given: str | None, model: str | None, name: str):
    """The run that is served as `name`: of the folder that is given, else found in OUTPUT_DIR; None where it is not there."""
    if not given:
        root, task = output_dir().parent, name.rpartition("-")[0].rpartition("-")[0]
        found = [file.parent for file in [*root.glob("*/*/run.json"), *root.glob("*/*/*/run.json")]
                 if f"{read_json(file).get('task') or task}-{file.parent.name}" == name]  # fmt: skip
        if not found:
            return None
        given = found[0]
    run = open_run(given, model)
    if name_of(run) != name:
        raise SystemExit(f"{given} is {name_of(run)}; the server has {name}. Start serve.py with this run.")
    return run


def questions(args, run, name: str) -> tuple[list[dict], str]:
    """([{messages, reference, gold or None}, ...], where they are from: recipe, kept or file)."""
    graded = name.startswith(tuple(f"{task}-" for task in GRADED))
    if args.prompts:
        found = [question_of(place, row, graded) for place, row in rows.read(args.prompts)]
        return found[: args.count], "file"
    if run is None:
        raise SystemExit(
            f"{name} is served, and its run is not in {output_dir().parent}: name the run's folder, or give --prompts."
        )
    beside, kept = TASK_DIR.parent / str(run.record.get("task")), run.adapter / HELD_OUT
    found, source, why = None, "recipe", f"{beside} is not there"
    if (beside / "prompt.py").is_file() and (beside / "data.py").is_file():
        found, why = recipe_rows(run, beside, args.count)
    if found is None and kept.is_file():
        tokenizer, source = tokenizer_of(run), "kept"
        found = [{"input_ids": row["input_ids"][: row["answer"]], "messages": None, "gold": None, "reference":
                  tokenizer.decode(row["input_ids"][row["answer"] :], skip_special_tokens=True).strip()}
                 for row in rows.read_lines(kept)]  # fmt: skip
    if found is None:
        raise SystemExit(f"the held-out rows of {run.adapter} are not to be had ({why}): give --prompts FILE.")
    found = [row for row in with_messages(run, found) if row["messages"]]
    if not found:
        raise SystemExit(f"{run.adapter}: no held-out row is a question of one turn: give --prompts FILE.")
    found = found[: args.count] if source == "kept" else spread(found, args.count)
    return [row | {"gold": row["gold"] if graded and row["gold"] else None} for row in found], source


def question_of(place, row, graded: bool) -> dict:
    """A row of --prompts. Raises SystemExit where it has no question."""
    if isinstance(row, rows.Bad):
        raise SystemExit(f"{place}{rows.said(row)}.")
    row = row if isinstance(row, dict) else {}
    asked = next((row[name] for name in ("question", "prompt", "instruction") if row.get(name)), None)
    if isinstance(asked, str) and isinstance(row.get("input"), str) and row["input"].strip():
        asked += "\n\n" + row["input"]
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    fine = isinstance(messages, list) and all(isinstance(each, dict) and isinstance(each.get("content"), str)
                                              and each.get("role") for each in messages)  # fmt: skip
    if not fine or not messages or not messages[-1]["content"].strip():
        raise SystemExit(f"{place}: a row needs question, prompt or instruction: a text, or messages.")
    answer = next((str(row[name]) for name in ("reference", "answer", "response", "output") if row.get(name)), "")
    gold = row.get("gold") or grading.answer_of(answer)
    return {"messages": messages, "reference": answer, "gold": str(gold) if graded and gold else None}


def spread(found: list, count: int) -> list:
    """`count` of them, evenly: a set that is sorted by subject shows each."""
    count = min(count, len(found))
    return [found[at * len(found) // count] for at in range(count)]


def recipe_rows(run, folder: Path, count: int) -> tuple[list | None, str]:
    """(held-out rows as the recipe's own data.py reads them, or None; why not)."""
    given = {"folder": str(folder), "tokenizer": str(reads_of(run)), "arguments": run.arguments, "texts": run.texts,
             "most": 4 * count}  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    done = subprocess.run([sys.executable, "-c", ROWS], input=json.dumps(given, default=str), capture_output=True,
                          text=True, encoding="utf-8", env=environment | {"PYTHONUTF8": "1"})  # fmt: skip
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def with_messages(run, found: list[dict]):
    """Rows with the messages that give their token ids through the serving template; those that nothing gives are left out."""
    if all(row["messages"] for row in found):
        yield from found
        return
    template, tokenizer = contract(run)[1], tokenizer_of(run)
    long = run.texts.get("prompt_template", "") if "prompt_template_short" in run.texts else ""
    heading = long.split("{instruction}")[1].split("{input}")[0] if long else ""  # alpaca's, before an input

    def render(text, tokenize=False):
        talk = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(talk, chat_template=template, add_generation_prompt=True, return_dict=False,
                                             tokenize=tokenize)  # fmt: skip

    frames = []  # (what stands before a question, what behind it), found by asking a word that no template holds
    for before in dict.fromkeys(("", heading)):
        head, tail = render(f"{before}Q7x5w").split("Q7x5w")
        frames.append((head.removesuffix(before) if before else head, tail))
    for row in found:
        if row["messages"]:
            yield row
            continue
        text = tokenizer.decode(row["input_ids"])
        for head, tail in frames:
            asked = text[len(head) : len(text) - len(tail)]
            whole = text.startswith(head) and text.endswith(tail) and asked.strip() and not rows.text_fault(asked)
            if whole and list(render(asked, tokenize=True)) == list(row["input_ids"]):
                yield row | {"messages": [{"role": "user", "content": asked}]}
                break


# -- answers, graded and marked


def answers(args, name: str, asked: list[dict]) -> list[dict]:
    """The rows with {arm: answer} of both models. A question that the server refuses is left out, and said."""
    from tqdm import tqdm

    def both(row):
        try:
            made = {
                arm: ask(args.url, arm, row["messages"], args.max_new_tokens, args.timeout) for arm in ("base", name)
            }
        except Unanswered as error:
            if error.args[1] != 400:
                raise
            return error.args[0]
        return row | {"answers": made, "right": graded(row["gold"], made)}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(tqdm(pool.map(both, asked), "answers", len(asked), unit=" questions", leave=False, disable=None))
    for refused in [each for each in made if isinstance(each, str)]:
        print(f"left out: {refused}")
    made = [each for each in made if not isinstance(each, str)]
    if not made:
        raise SystemExit("the server answered no question.")
    return made


def graded(gold: str | None, made: dict) -> dict | None:
    """{arm: whether its answer is right}; None without a gold answer, or where comparing it needs what is not installed."""
    try:
        return {arm: grading.is_right(each["text"], gold) for arm, each in made.items()} if gold else None
    except SystemExit:
        return None


def folder_of(given: str | None, run, name: str) -> Path:
    """Where the page goes: the folder that is given, the run's export, or OUTPUT_DIR/deploy/NAME."""
    from gate import newest_export

    folder = Path(given).expanduser() if given else (newest_export(run) if run else None) or output_dir("deploy") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{folder}: {error.strerror}. Name another folder with --out.") from None
    return folder


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    try:
        name = served(args.url)
        run = run_of(args.adapter, args.model, name)
        asked, source = questions(args, run, name)
        folder = folder_of(args.out, run, name)
        print(f"{name} and base: {len(asked)} questions ({LABELS['en']['from'][source].format(file=args.prompts)})")
        made = answers(args, name, asked)
    except Unanswered as error:
        raise SystemExit(error.args[0]) from None
    lang = language(args.lang)
    facts = LABELS[lang]["from"][source].format(file=Path(args.prompts or "").name)
    ungraded = any(row["gold"] and not row["right"] for row in made)
    write_lines(folder / "compare.jsonl", made)
    replace_text(folder / "compare.html", page(name, made, facts, lang, ungraded))
    lost, won = (sum(flip(row) == kind for row in made) for kind in ("lost", "won"))
    if any(row["right"] for row in made):
        print(f"right -> wrong: {lost}, wrong -> right: {won}")
    print(f"the page: {folder / 'compare.html'}")
    return folder / "compare.html"


if __name__ == "__main__":
    main()
