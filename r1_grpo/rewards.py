"""The five rule rewards: what a completion earns, 4.0 at most. No model judges here; each rule can be read and tested.

A reward is f(text, gold) -> float: text is a completion, gold the data's number. `for_trl` makes of it what TRL calls.
Only `grade`, which measures and never rewards, also looks outside the answer block (common/grading.py).
"""

import math
import re
import unicodedata
from fractions import Fraction

from common.files import text_table
from common.grading import is_right

# What each pays at most, and all of them together. Only the first is the aim: the others lead there.
PAYS = dict(correctness=2.0, int=0.5, strict_format=0.5, soft_format=0.5, xmlcount=0.5)
MOST = sum(PAYS.values())
NEARLY = 3.5  # a mean over this: nothing is left to learn

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
# (?:(?!X).)* is "anything, but no X in it". A plain .* would run over a second block and accept two answers.
NO_TAG = r"(?:(?!</?(?:reasoning|answer)>).)*"
# re.S lets the dot cross line breaks: reasoning has several lines. fullmatch, so nothing may stand around it.
STRICT = re.compile(rf"<reasoning>\n{NO_TAG}\n</reasoning>\n<answer>\n{NO_TAG}\n</answer>\n?", re.S)
SOFT = re.compile(rf"<reasoning>{NO_TAG}</reasoning>\s*<answer>{NO_TAG}</answer>", re.S)
ANSWER = re.compile(rf"<answer>({NO_TAG})</answer>", re.S)
WHOLE = re.compile(r"-?\d+", re.ASCII)
PLAIN = re.compile(r"(-?\d+(?:\.\d+)?)(?:/(\d+))?", re.ASCII)  # as `normalise` leaves a number: 18, 7.50, 3/8
THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)", re.ASCII)  # neither 1,5 nor 0,125 has any
LONGEST = 500  # characters of a number; int() raises over 4,300 digits, and a model may write them


# -- numbers


def normalise(text):
    """A number as it is shown and looked at: "$1,600.00", "+1600." and "１６００" are "1600". What is none stays a text."""
    # Full-width digits, signs and commas. Raised and circled ones and ½ are left alone: 5² is not 52, 1½ not 11/2.
    text = re.sub(r"[^¹²³¼-¾⁰-₎⅐-⅟↉①-⓿]+", lambda part: unicodedata.normalize("NFKC", part[0]), text)
    text = text.strip().translate(str.maketrans({"−": "-", "–": "-", "—": "-"}))
    text = re.sub(r"^([+-]?)\s*\$\s*([+-]?)", r"\1\2", text)
    text = re.sub(r"^\+(?=[\d.])", "", text)
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", text)
    text = re.sub(r"^(-?\d+)\.0*$", r"\1", text)
    return re.sub(r"^(-?)0+(?=\d)", r"\1", text)


def value(text):
    """What a normalised number is worth, as an exact Fraction; None for all else, 18%, 18 apples and 1/0 included."""
    found = PLAIN.fullmatch(text) if len(text) <= LONGEST else None
    if not found or not int(found[2] or 1):
        return None
    return Fraction(found[1]) / int(found[2] or 1)


def same(answer, gold):
    """Are they worth the same, to the last digit? What is no plain number is only the same as its own text."""
    if answer is None:
        return False
    gold = normalise(gold)
    worth = value(gold)
    return answer == gold or (worth is not None and value(answer) == worth)


# -- rewards


def extract(text):
    """The number in the last answer block, normalised; None without a complete block. Truncated text has none."""
    blocks = ANSWER.findall(text)
    return normalise(blocks[-1]) if blocks else None


def correctness_reward_func(text, gold):
    """The last answer block is worth the gold number: 7.50, 7.5 and 15/2 are equal; "18%" and "18 apples" are not 18."""
    return PAYS["correctness"] if same(extract(text), gold) else 0.0


def int_reward_func(text, gold):
    """A whole number, right or wrong, is in the last answer block: not "72 clips", not 1/2, not 36/2.

    Where the gold number is not whole, any plain number earns it: otherwise 2 would, and the right 1.75 would not.
    """
    answer, worth = extract(text) or "", value(normalise(gold))
    if worth is None or worth.denominator == 1:
        return PAYS["int"] if WHOLE.fullmatch(answer) else 0.0
    return PAYS["int"] if value(answer) is not None else 0.0


def strict_format_reward_func(text, gold):
    """The form to the letter: each tag once, on a line of its own, nothing around them."""
    return PAYS["strict_format"] if STRICT.fullmatch(text) else 0.0


def soft_format_reward_func(text, gold):
    """Reasoning and then answer, somewhere in the text: a step towards strict that is found sooner."""
    return PAYS["soft_format"] if SOFT.search(text) else 0.0


def xmlcount_reward_func(text, gold):
    """A quarter for each tag that is there exactly once, less up to 0.25 for text behind the end: the finest of the steps.

    Half-right forms differ here, and a group whose rewards all are the same teaches nothing.
    """
    tail = text.split("\n</answer>", 1)[1].strip() if "\n</answer>" in text else ""
    each = PAYS["xmlcount"] / len(TAGS)
    return each * sum(text.count(tag) == 1 for tag in TAGS) - min(0.25, 0.001 * len(tail))


REWARDS = [
    xmlcount_reward_func,
    soft_format_reward_func,
    strict_format_reward_func,
    int_reward_func,
    correctness_reward_func,
]


def for_trl(reward):
    """A reward as TRL calls it: lists of completions, each a conversation of one message, and the data's column `answer`.

    Its name is what TRL's logs call it: rewards/<name>/mean.
    """

    def rewards(completions, answer, **_):
        texts = [completion[0]["content"] for completion in completions]
        return [reward(text, gold) for text, gold in zip(texts, answer, strict=True)]

    rewards.__name__ = reward.__name__
    return rewards


def score(text, gold, rewards=REWARDS):
    """What one completion earns: {reward's name without _reward_func: float}."""
    return {each.__name__.removesuffix("_reward_func"): each(text, gold) for each in rewards}


def broken(gold_text, gold):
    """Completions that must not earn everything, each with what is wrong with it."""
    wrong = str(math.floor(value(gold)) + 1)
    head, tail = gold_text.split("<answer>")
    return {
        "wrong number": f"{head}<answer>\n{wrong}\n</answer>",
        "no tags": gold,
        "cut off": gold_text[: gold_text.rindex("</answer>")],
        "two blocks": f"{gold_text}\n{gold_text}",
        "answers first": f"<answer>{tail.removeprefix('<answer>')}\n{head.strip()}",
        "<answer> spam": "".join(f"<answer>\n{n}\n</answer>\n" for n in range(10)) + f"<answer>\n{gold}\n</answer>",
        "talks on": gold_text + "\n" + "I hope that this helps. " * 20,
    }


def self_test(rows, ideal):
    """Score every gold solution and one's broken relatives before anything is trained. Returns the text to print.

    rows: dicts with question, answer, gold. ideal(row) -> the completion that should earn all of MOST. Raises SystemExit
    where a gold solution earns less or a broken one as much: training on such rewards teaches something else.
    """
    for number, row in enumerate(rows, 1):
        earned = score(ideal(row), row["gold"])
        if sum(earned.values()) != MOST:
            raise SystemExit(
                f"training row {number}: its own solution, put into the form, earns {sum(earned.values())} and not {MOST}: "
                f"{earned}\n{ideal(row)}\nDoes the text hold one of the tags {' '.join(TAGS)}? Leave that row out."
            )
    table = []
    for name, text in broken(ideal(rows[0]), rows[0]["gold"]).items():
        earned = score(text, rows[0]["gold"])
        table.append([name, f"{sum(earned.values()):.3f}", *(f"{value:g}" for value in earned.values())])
        if sum(earned.values()) >= MOST:
            raise SystemExit(f"rewards.py pays {sum(earned.values())} for a completion with this fault: {name}\n{text}")
    head = f"rewards: {len(rows):,} gold solutions in the form earn {MOST} each; broken ones:"
    return f"{head}\n{text_table(('fault', 'earns', *earned), table)}"


def grade(text, gold):
    """The measures of one answer, as 0.0 or 1.0: is it right by its answer block (strict); by what the text answers, with
    or without the form (flexible: its box, else its last number or formula); has it the form."""
    return {
        "strict": float(same(extract(text), gold)),
        "flexible": float(is_right(text, gold)),
        "format": float(bool(STRICT.fullmatch(text))),
    }
