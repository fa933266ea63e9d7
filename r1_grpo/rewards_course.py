"""A lesson: the five rewards as they are widely copied, written again from their description. Do not train with these.

They look right and pay wrongly, without a word. `python rewards_course.py --data DIR` puts every gold solution of a
data set into the form, ending as a model ends (at </answer>), and prints what both versions pay. Three causes:

1. In a regular expression the dot does not match a line break unless re.S says so. Reasoning has line breaks, so the
   two format rewards are 0 for every good completion. strict also demands a line break behind </answer>, which a model
   that stops at its end token seldom writes.
2. xmlcount takes the "text behind the end" as what follows "\\n</answer>\\n". Where that is missing, str.split returns
   the whole text, so each character of reasoning costs 0.001: the model is paid for thinking less.
3. Numbers are compared as text: "1600" is not "1,600", and isdigit() rejects "-5".
"""

import argparse
import re

from common.files import text_table
from common.paths import load_env
from data import read_splits
from prompt import ideal
from rewards import MOST, PAYS, score

NUMBERS = ("mean", "smallest", "largest", "all of it")  # the last: the share of the texts that earn all of the reward


def extract_answer(text):
    """Falls back to the whole text where there is no tag: a bare "5" counts as an answer."""
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def correctness_reward_func(text, gold):
    return PAYS["correctness"] if extract_answer(text) == gold else 0.0


def int_reward_func(text, gold):
    return PAYS["int"] if extract_answer(text).isdigit() else 0.0


def strict_format_reward_func(text, gold):
    pattern = r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$"
    return PAYS["strict_format"] if re.match(pattern, text) else 0.0


def soft_format_reward_func(text, gold):
    pattern = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"
    return PAYS["soft_format"] if re.match(pattern, text) else 0.0


def xmlcount_reward_func(text, gold):
    total = 0.0
    if text.count("<reasoning>\n") == 1:
        total += 0.125
    if text.count("\n</reasoning>\n") == 1:
        total += 0.125
    if text.count("\n<answer>\n") == 1:
        total += 0.125 - 0.001 * len(text.split("\n</answer>\n")[-1])
    if text.count("\n</answer>") == 1:
        total += 0.125 - 0.001 * (len(text.split("\n</answer>")[-1]) - 1)
    return total


REWARDS = [
    xmlcount_reward_func,
    soft_format_reward_func,
    strict_format_reward_func,
    int_reward_func,
    correctness_reward_func,
]


def compare(rows):
    """What both versions pay for the rows' own solutions: {(reward, ending): {"copied": [...], "here": [...]}}."""
    paid = {}
    for ending, end in (("stops at </answer>", ""), ("line break behind it", "\n")):
        for row in rows:
            gold = row["answer"].split("####")[1].strip()  # as it stands in the data, which is what the copies compare
            text = ideal(row | {"gold": gold.replace(",", "")}) + end
            for name, scores in (("copied", score(text, gold, REWARDS)), ("here", score(text, gold))):
                for reward, value in (scores | {"total": sum(scores.values())}).items():
                    paid.setdefault((reward, ending), {}).setdefault(name, []).append(value)
    return paid


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", help="as train.py's")
    args = parser.parse_args(argv)
    load_env()
    rows = read_splits(args.data)[0]
    table = []
    for (reward, ending), versions in compare(rows).items():
        cells, full = [reward, ending], MOST if reward == "total" else PAYS[reward]
        for scores in versions.values():
            share = sum(abs(value - full) < 1e-9 for value in scores) / len(scores)
            cells += [f"{sum(scores) / len(scores):.4f}", f"{min(scores):.3f}", f"{max(scores):.3f}", f"{share:.1%}"]
        table.append(cells)
    print(f"{len(rows):,} gold solutions in the form: what the copied rewards pay, and what those here pay.\n")
    print(text_table(("reward", "text", *(f"{name} {kind}" for kind in ("copied", "here") for name in NUMBERS)), table))


if __name__ == "__main__":
    main()
