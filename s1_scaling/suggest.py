"""How much thinking a question may take, before anyone has thought: as much as the training questions that are like it took.

A trace's length is what its teacher found difficult. So a question's budget is the longest of the traces of the training
questions whose words are most like its own, and a quarter more. Numbers count by their digits: 17 is like 48, not like 1,748.

    python infer.py --suggest          one question
    python evaluate.py --suggest       every held-out question with a budget of its own, beside the same budget for all
"""

import re
import statistics

from common.files import text_table

LIKE = 8  # training questions that a budget is taken from
ROOM = 1.25  # times the longest of their traces: a second look is no fault


def words(question):
    """A question's words, each number replaced by as many zeros as it has digits."""
    return {re.sub(r"\d", "0", word) for word in re.findall(r"\w+", question.lower())}


def budgets(tokenizer, train_rows, questions):
    """The suggested thinking tokens of each question. Raises SystemExit where no training row has a trace."""
    rows = [row for row in train_rows if row.get("trace")]
    if not rows:
        raise SystemExit("--suggest needs the traces that the run was trained on, and its data has none.")
    lengths = [len(ids) for ids in tokenizer([row["trace"] for row in rows], add_special_tokens=False).input_ids]
    known = [words(row["question"]) for row in rows]

    def of(question):
        mine = words(question)
        likeness = [len(mine & other) / max(1, len(mine | other)) for other in known]
        nearest = sorted(range(len(rows)), key=lambda n: -likeness[n])[:LIKE]
        return round(ROOM * max(lengths[n] for n in nearest))

    return [of(question) for question in questions]


def as_text(rows, suggested):
    """A table: by domain, how many questions and which budgets."""
    cells = []
    for domain in sorted({row.get("domain", "all") for row in rows}):
        mine = [most for row, most in zip(rows, suggested, strict=True) if row.get("domain", "all") == domain]
        cells.append((domain, str(len(mine)), str(min(mine)), f"{statistics.median(mine):g}", str(max(mine))))
    return text_table(("domain", "questions", "least budget", "median", "most"), cells)
