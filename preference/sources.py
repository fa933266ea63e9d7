"""One raw row of preference data, in any layout that is understood (see data.py), as a prompt in turns and two answers.

What cannot be used is said by `Bad`, with the column, and never mended by a guess. What no single row shows, notes_of says.
"""

import json
import re

from common.rows import EMPTY, MISSING, TYPE, Bad, blank, clean_text, object_of

# A pair is dropped for the first of these that is true of it, or for one of common.rows'.
ROLE, ORDER, DIFFER, TWO = "unknown role", "roles do not alternate", "conversations differ", "two system texts"
EQUAL, NO_QUESTION, NO_ANSWER = "equal sides", "prompt does not end with the user", "no answer at the end"

PROMPT_COLUMNS = ("prompt", "conversations", "messages", "instruction", "question", "input")  # the first that is there
EARLIER = {"system": str, "history": list}  # these become turns before the prompt's, if they are of this type
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

SPEAKER = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def text_of(value, column):
    if not isinstance(value, str):
        raise Bad(MISSING if value is None else TYPE, column, f"expected text, got {type(value).__name__}")
    return clean_text(value, column)


def first_of(turn, *names):
    """The value of the first key that holds one: Parquet fills the keys that a row did not have with None."""
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def messages_of(value, column):
    """Text, a transcript, one message or a list of them, as [{role, content}, ...]."""
    if isinstance(value, str):
        value = transcript_of(value) or {"role": "user", "content": value}
    made = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict):
            raise Bad(MISSING if turn is None else TYPE, column, f"expected a message, got {type(turn).__name__}")
        role = first_of(turn, "role", "from")
        if not isinstance(role, str) or role not in ROLES:  # a list or an object has no hash: it cannot be looked up
            raise Bad(ROLE, column, f"role {repr(role)[:80]}; known: {', '.join(ROLES)}")
        made.append({"role": ROLES[role], "content": text_of(first_of(turn, "content", "value"), column)})
    return made


def transcript_of(text):
    """The turns of a transcript as in HH-RLHF (arXiv 2204.05862), "\\n\\nHuman: ...\\n\\nAssistant: ..."; of other texts [].

    An empty "Assistant:" at the end is no turn: a prompt has it where the answer goes on.
    """
    start, *parts = SPEAKER.split(text.strip())
    names, said = parts[::2], parts[1::2]
    if start or names[:1] != ["Human"] or not ("Assistant" in names or text.startswith("\n\nHuman:")):
        return []  # words before the first speaker: a text that holds a dialogue
    turns = [{"role": SPEAKERS[name], "content": each} for name, each in zip(names, said, strict=True)]
    return turns[:-1] if names[-1] == "Assistant" and not said[-1].strip() else turns


def same(turns, others):
    """Whether these are the same turns, but for spaces and line breaks."""
    pairs = zip(turns, others, strict=False)
    return len(turns) == len(others) and all(
        one["role"] == two["role"] and one["content"].split() == two["content"].split() for one, two in pairs
    )


def joined(talk, more):
    """The turns of both. `more` often repeats `talk`, whole or its end, and may hold what came before it: a question is
    asked once."""
    if more and more[0]["role"] == "assistant":  # it answers `talk`, whatever is said later
        return talk + more
    if any(same(talk, more[at : at + len(talk)]) for at in range(len(more) - len(talk) + 1)):
        return more
    shared = range(min(len(talk), len(more)), 0, -1)
    return talk + more[next((n for n in shared if same(talk[-n:], more[:n])), 0) :]


def prompt_column(row):
    there = [name for name in PROMPT_COLUMNS if row.get(name) is not None]
    return next((name for name in there if not blank(row[name])), there[0] if there else None)


def used_columns(row):
    """The names of the columns that `parse_pair` reads; what stands in others is reported, never used."""
    column = prompt_column(row)
    names = {column, "input"} if column == "instruction" else {column}
    names |= {name for name, kind in EARLIER.items() if isinstance(row.get(name), kind)}
    return names | {name for name, _ in raw_sides(row)}


def raw_sides(row):
    """[(column, better answer), (column, worse answer)]: of two columns, or of `output` with both in a list."""
    sides = [(name, row.get(name)) for name in ("chosen", "rejected")]
    if isinstance(row.get("output"), list) and all(value is None for _, value in sides):
        if len(row["output"]) != 2:
            raise Bad(TYPE, "output", f"expected two answers, the better one first, got {len(row['output'])}")
        return [("output", value) for value in row["output"]]
    return sides


def prompt_of(row):
    """(column, turns) of a row's prompt; (None, []) where the sides are whole conversations."""
    column = prompt_column(row)
    if column == "instruction" and isinstance(row[column], str) and not blank(row.get("input")):
        texts = text_of(row[column], column), text_of(row["input"], "input")
        return column, [{"role": "user", "content": "\n\n".join(texts)}]
    return column, messages_of(row[column], column) if column else []


def history_of(value):
    """Turns of a history: [[question, answer], ...] or messages."""
    turns = []
    for each in value:
        if not isinstance(each, list):
            turns += messages_of(each if isinstance(each, dict) else [each], "history")
            continue
        if len(each) != 2:
            raise Bad(TYPE, "history", f"expected [question, answer], got {len(each)} texts")
        for role, text in zip(("user", "assistant"), each, strict=True):
            turns.append({"role": role, "content": text_of(text, "history")})
    return turns


def side_of(value, column, prompt):
    """(what stands before the answer, the answer) of one side of a pair."""
    if isinstance(value, str):
        turns = transcript_of(value)
        # With a prompt, a transcript that does not repeat it is an answer: a dialogue was asked for.
        value = turns if turns and (not prompt or any(same(prompt[-1:], [turn]) for turn in turns)) else value
    if isinstance(value, str) or value is None:
        return [], text_of(value, column)
    turns = messages_of(value, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise Bad(NO_ANSWER if turns else EMPTY, column, "does not end with the assistant")
    return turns[:-1], turns[-1]["content"]


def parse_pair(row):
    """A raw row as {prompt: messages, chosen: text, rejected: text}. Raises Bad.

    The prompt is a system turn or none, then user, assistant, ..., user.
    """
    object_of(row, "prompt", "chosen", "rejected")
    column, prompt = prompt_of(row)
    sides = raw_sides(row)
    (before, chosen), (other, rejected) = (side_of(value, name, prompt) for name, value in sides)
    if not same(before, other):
        raise Bad(DIFFER, sides[1][0], "its conversation differs from chosen's before the last answer")
    if prompt[-1:] == [{"role": "assistant", "content": chosen}]:
        prompt = prompt[:-1]  # some put the whole conversation there, with the better answer
    earlier = {name: row[name] for name, kind in EARLIER.items() if isinstance(row.get(name), kind)}
    system = earlier.get("system", "")
    system = [{"role": "system", "content": text_of(system, "system")}] if system.strip() else []
    systems, talk = [], []
    for turns in (system, history_of(earlier.get("history", [])), prompt, before):
        first = [turn for turn in turns[:1] if turn["role"] == "system"]
        systems += first if not any(same(first, [each]) for each in systems) else []
        talk = joined(talk, turns[len(first) :])
    if len(systems) > 1:
        raise Bad(TWO, column, "the row's system texts differ")
    if not talk:
        raise Bad(MISSING, PROMPT_COLUMNS[0], f"no prompt. A prompt is in one of {', '.join(PROMPT_COLUMNS)}")
    if talk[-1]["role"] != "user":
        raise Bad(NO_QUESTION, column, f"its last turn is the {talk[-1]['role']}'s")
    for number, turn in enumerate(talk):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise Bad(ORDER, column, f"turn {number + 1} is the {turn['role']}'s")
    if chosen == rejected:
        raise Bad(EQUAL, sides[1][0], "the same text as chosen")
    return {"prompt": systems + talk, "chosen": chosen, "rejected": rejected}


# -- all pairs of a source


def key_of(messages):
    return json.dumps(messages, ensure_ascii=False)


def loose(text):
    """A text without what does not change its meaning: case, spaces, punctuation."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def notes_of(pairs, places):
    """What no single row shows: pairs that contradict or repeat another one, sides that are nearly one, and answers that
    begin with their question.

    All are kept. People do disagree, and of two pairs that contradict each other only one can be learned.
    """
    first, contrary, repeated, echoes, alike = {}, [], [], [], []
    for place, pair in zip(places, pairs, strict=True):
        prompt, chosen, rejected = key_of(pair["prompt"]), pair["chosen"], pair["rejected"]
        if (prompt, rejected, chosen) in first:
            contrary.append((place, first[prompt, rejected, chosen]))
        if first.setdefault((prompt, chosen, rejected), place) != place:
            repeated.append((place, first[prompt, chosen, rejected]))
        question = pair["prompt"][-1]["content"]
        if chosen.startswith(question) and rejected.startswith(question):
            echoes.append((place,))
        if loose(chosen) == loose(rejected):
            alike.append((place,))
    kinds = (
        (contrary, "contradict an earlier one: the same prompt, the sides swapped"),
        (repeated, "repeat an earlier one"),
        (echoes, "have their prompt's text again at the start of both answers, which is not taken off"),
        (alike, "have sides that differ in case, spaces or punctuation only"),
    )
    return [
        f"{len(found):,} pairs {what} (the first: {' and '.join(place.inside for place in found[0])})"
        for found, what in kinds
        if found
    ]
