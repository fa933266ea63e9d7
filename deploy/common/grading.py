# Generated from common/grading.py: edit that file, then run `make sync`.
"""Is an answer right? Numbers are compared by value, formulas by math-verify, words by the end of the text.

What a text answers is in its last \\boxed{}, else behind its last "Answer:", else its last number or its end. Plain numbers
are read here: math-verify reads no "+7", takes the 2 of "48 (see step 2)", and thinks that "not 48" is 48. Formulas are
its work (Hugging Face, https://github.com/huggingface/Math-Verify): \\frac{2}{7}, 3 \\times 10^8, intervals, sets.

It runs in a process of its own, which is ended where it takes too long: sympy computes 9^{9^9} for as long as it is let,
and math-verify's own time limit is a signal, which works in the main thread only.
"""

import functools
import json
import re
import subprocess
import sys
import threading
import unicodedata
from fractions import Fraction

SECONDS = 1.0  # most that one comparison of formulas takes
LONGEST = 300  # characters of a number or a formula: a longer one is no answer
TAIL = 2_000  # characters of a text's end that are searched for its answer

NUMBER = r"(?:\d++(?:,\d++)*+(?:\.\d++)?+|(?<![\w.])\.\d++)"  # .5, but in "And then...5" 5
FRACTION = rf"(?:\d++\s++\d++/\d++(?![\d/])|{NUMBER}(?:/{NUMBER})?)"  # 1 1/2 is three halves
# Not inside of a word, nor the second half of 1.2.3. A minus right behind a word or digit is a dash.
SIGNED = re.compile(rf"(?<![A-Za-z_\d])(?<!\d\.)(?:(?<![\w)])[-+]\s?\$?|\$-?)?{FRACTION}", re.ASCII)
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
PLAIN = re.compile(rf"[-+]?\s?\$?\s?-?{FRACTION}\s?%?", re.ASCII)
OPERATOR = re.compile(r"[ \t]*(?:\*\*|[-+*×·÷/x]|\^[{(]*)[ \t]*")  # between two numbers: the last is an operand
WHOLE = r"[-+]?\d+"
RAISED = rf"\^\s*(?:{WHOLE}|\{{{WHOLE}\}}|\({WHOLE}\))"
POWER = re.compile(rf"(?<![\^{{\d.])(?:{NUMBER}\s*[*×·x]\s*)?{NUMBER}\s*{RAISED}", re.ASCII)
NO = r"(?:\b(?:not|never|nor|rather than|instead of|other than)\b|n't\b|≠|!=|\\neq?(?![a-z])|不是|并非|而非|不等于)"
DENIED = rf"[-+]?\$?(?:\\[dt]?frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|{FRACTION})"
NEGATED = re.compile(rf"{NO}\s*(?:(?:be|equal|equal to|exactly|just)\s+)*{DENIED}", re.I | re.ASCII)
EXPONENT = re.compile(r"(?<=[A-Za-z\u4e00-\u9fff)])\s?\^\s?[{(]?[-+]?\d+[)}]?")  # of a unit: m^2
REMARK = re.compile(
    r"\((?=[^()]*[^\W\d_]{2})[^()=\\]*\)|(?<=\d)[ \t]+\([^()=]*\)"
)  # "(see step 2)", not "(6 x 8 = 48)"
PLACE = re.compile(r"\b(?:step|line|equation|eq\.|part|case|figure|table|method)s?\s*\(?\d+\)?|第\s*\d+\s*[步行]", re.I)
FORMULA = re.compile(r"[\\^_=+<>{}|√π∞≤≥]|^[(\[].*\d.*[)\]]$")
ANSWER = re.compile(r"(?:\banswers?\**\s*(?:[:：]|\bis\b:?)\**|答案(?:是|为)?\s*[:：]?|^####)\s*", re.I | re.M)


# -- where the answer is


def plain(text):
    """Full-width digits, signs and superscripts as ASCII: "１６００" 1600, "−5" -5, "m²" m^2, "1½" 1 1/2."""
    text = re.sub(r"[¼-¾⅐-⅞]", lambda part: " " + unicodedata.normalize("NFKC", part[0]).replace("⁄", "/"), text)
    text = re.sub(r"[⁻⁺]?[⁰¹²³⁴-⁹]+", lambda part: "^" + unicodedata.normalize("NFKC", part[0]), text)
    return unicodedata.normalize("NFKC", text).translate(str.maketrans({"−": "-", "–": "-", "—": "-"}))


def boxed(text):
    """What the last \\boxed{} holds, braces in it included; None without one that is closed."""
    start = text.rfind("\\boxed{") + len("\\boxed{")
    if start < len("\\boxed{"):
        return None
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place - 1] == "\\" and text[place] in "{}":
            depth += 1 if text[place] == "}" else -1
        if not depth:
            return text[start:place]
    return None


def unwrapped(text):
    """LaTeX that only says how it looks, taken away: \\text{C} is C, 8{,}500 is 8,500, $\\$7.50$ is 7.50."""
    for _ in range(3):  # \textbf{\text{C}}
        text = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[,;:! ]|\\(?:left|right|displaystyle|quad)(?![a-z])|~", " ", text.replace("{,}", ","))
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", "", text).replace("\\%", "%").replace("\\$", "")
    return re.sub(r"\\[()\[\]]|\\boxed\{?|\$", "", text).strip()


def final(text):
    """The part of a text that holds its answer: the last box, else what follows "Answer:" at its beginning, else all."""
    inside = boxed(text)
    if inside is not None:
        return inside
    return re.sub(r"^[\s*#]*(final )?answer\**\s*:\**", "", text[-TAIL:] if len(text) > TAIL else text, flags=re.I)


def normalise(text):
    """A text as words are compared: "Answer: **Friday**." is "friday", "$1,600.00" and "１６００" are "1600"."""
    text = re.sub(r"^([\s*]|\.(?!\d))+|[\s.*]+$", "", unwrapped(plain(final(text)))).lower()
    text = re.sub(r"\s+", " ", text).replace(" and ", " ")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("$", "")
    text = re.sub(r"(?<![\d.:])(-?\d+)\.0+(?![\d])", r"\1", text)
    return re.sub(r"^(-?)0*(?=\d+$)", r"\1", re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", text))


def answer_of(solution):
    """The answer in a worked solution, as s1K's column `solution` has them: in its box, behind "Answer:", "answer is" or
    "####", or all of it where it is one short line. "" where none is marked, as in a proof: nothing can be compared."""
    if (inside := boxed(solution)) is not None:
        return inside.strip()
    marked = list(ANSWER.finditer(solution))
    rest = (solution[marked[-1].end() :] if marked else solution).strip()
    line = rest.split("\n")[0].strip() if marked else rest
    return line.rstrip("*. ").strip("* ") if len(line) <= 80 and "\n" not in line else ""


# -- what it is worth


def value(text):
    """What a plain number is worth, as a Fraction: 18, 7.50, -$1,600, 3/8, 1 1/2; None for all else."""
    found = PLAIN.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if not found:
        return None
    text = text.replace("$", "").replace("%", "").strip()
    sign = -1 if text.startswith("-") else 1
    worth = Fraction(0)
    *whole, last = text.lstrip("+- ").split()
    for part in whole:
        worth += int(part)
    sides = []
    for part in last.split("/"):
        if "," in part and not THOUSANDS.fullmatch(part):
            return None  # 1,5 is a decimal or two numbers, who knows
        sides.append(Fraction(part.replace(",", "")))
    if len(sides) > 1 and not sides[1]:
        return None
    return sign * (worth + (sides[0] / sides[1] if len(sides) > 1 else sides[0]))


def undenied(text):
    """A text without its remarks, and without what it says that the answer is not."""
    text = NEGATED.sub(" ", text)
    kept = PLACE.sub(" ", REMARK.sub(" ", text))
    return kept if re.search(r"\d", kept) else text  # "(52 apples)" is no remark


def number(text):
    """The number that a text answers, as it stands there: its last, but no exponent, none in a remark, none that is denied,
    no operand. "" if there is none; a power as it is."""
    kept = EXPONENT.sub("", undenied(plain(text)[-TAIL:]))
    found = list(SIGNED.finditer(kept))
    if not found:
        return ""
    last = found[-1]
    for power in POWER.finditer(kept):
        if power.start() <= last.start() < power.end():
            return power[0]
    between = kept[found[-2].end() : last.start()] if len(found) > 1 else "nothing"
    minus = not between.strip(" \t") and last[0][0] in "+-"
    if OPERATOR.fullmatch(between) or minus or between == ":" and len(last[0]) < 3:
        return ""
    return kept[last.start() : last.end() + (kept[last.end() :][:1] == "%")]


def same(answer, gold):
    """Are two plain numbers worth the same? 50% is 50 as well as one half."""
    answers, golds = ({value(text), value(text) / 100 if "%" in text else value(text)} for text in (answer, gold))
    return bool(answers & golds)


def wanted(gold):
    """A gold answer without LaTeX's looks."""
    return plain(unwrapped(final(gold))).strip().rstrip(".")


def is_right(text, gold):
    """Whether a text answers the gold answer: a number by its value, a formula by math-verify, words by the text's end."""
    words, gold = normalise(gold), final(gold).strip()
    if not words or not text.strip():
        return False
    answer, bare = final(text), unwrapped(final(text))
    end = answer if boxed(text) is not None else undenied(answer)[-LONGEST:]
    if value(wanted(gold)) is not None:
        if "\\" in bare:
            return equal(end, gold)
        found = number(bare)
        return equal(found, gold) if "^" in found else value(found) is not None and same(found, wanted(gold))
    if FORMULA.search(wanted(gold)):
        return "".join(bare.split()) == "".join(unwrapped(gold).split()) or equal(end, gold)
    said = normalise(text)
    found = re.search(rf"(?<![\w:.]){re.escape(words)}$", said)
    denied = found and re.search(rf"{NO}\s*$", said[: found.start()])
    return said.strip("()") == words.strip("()") or bool(found and not denied)


def short_answer(text, gold):
    """What a text answers, in one form for all that are equal, to be counted: the gold answer if it is right; "" where gold
    is a number and the text has none."""
    if is_right(text, gold):
        return normalise(gold)
    bare = unwrapped(final(text))
    if value(wanted(gold)) is None or "\\" in bare:
        return normalise(text)
    worth = value(number(bare))
    return number(bare) if worth is None else str(worth)


# -- formulas, in a process of their own

LOCK = threading.Lock()
running = []  # the process, once it is needed


def start():
    how = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    running[:] = [subprocess.Popen([sys.executable, "-P", __file__], **how)]


@functools.lru_cache(10_000)
def equal(answer, gold):
    """Whether math-verify finds two formulas equal. False where it takes longer than SECONDS, or one is too long."""
    if max(len(answer), len(gold)) > LONGEST:
        return False
    with LOCK:
        if not running:
            start()
        (process,) = running
        if not hasattr(process, "ready"):
            if process.stdout.readline() != "ready\n":
                raise SystemExit("math-verify cannot be imported: pip install --no-deps -r requirements.txt")
            process.ready = True
        late = threading.Timer(SECONDS, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps([answer, gold]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except OSError:
            said = ""
        late.cancel()
        if not said:  # ended by us, or by itself (nesting that no stack holds): the next one starts meanwhile
            process.kill()
            process.wait()
            start()
    return said == "1\n"


def serve():
    """The other side: reads [answer, gold] a line, writes 1 or 0 a line, until its input ends."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def read(text):
        # Bare LaTeX needs its dollars, a sentence must not have them.
        prose = re.search(r"\\[(\[]|(?<!\\)\$|(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}", text)
        return parse(text if prose else f"${text}$", parsing_timeout=None)

    read(r"\frac{1}{2}")  # the grammar is built at the first use
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer, gold = map(read, json.loads(line))
            right = verify(gold, answer, timeout_seconds=None)
        except Exception:  # whatever sympy makes of it: no answer
            right = False
        print(int(right), flush=True)


if __name__ == "__main__":
    serve()
