"""A gold reward that is a formula, and prompts made from a list: an experiment in which the truth is known.

A real preference has no formula, so nobody can say whether a policy that a reward model likes is any better. Here
"good" is defined: an answer of about a dozen plain, different words that comes to its end. The reward model never sees
the formula, only pairs that it ranked, as it would see only people's choices. How far the two part is the experiment.

Why this one: the SFT model's answers are nearly all too long, so in the pairs the shorter side wins nearly always. That
is what the reward model learns, and it is right, as far as the pairs reach. A policy that goes beyond them pleases it all
the more, while the gold falls: Goodhart's law. We expected it to shorten on and on; it stays at some twenty tokens and
finds odd words instead (README.md, results).
"""

import itertools
import math
import random
import re

WORDS = 12  # the length that gold likes best
SUBJECTS = (
    "bees", "rain", "tea", "bread", "cats", "the moon", "rivers", "sleep", "music", "trees", "money", "salt", "trains",
    "books", "gardens", "snow", "glass", "dogs", "coffee", "the sea", "bicycles", "clouds", "honey", "maps", "shoes",
    "paper", "fire", "birds", "clocks", "soup", "mountains", "wool", "bridges", "apples", "stars", "wind", "soap",
    "windows", "ships", "sand", "candles", "horses", "lamps", "mirrors", "ice", "bells", "potatoes", "gold",
)  # fmt: skip
QUESTIONS = (
    "Tell me something about {}.", "Why do people like {}?", "What should a child know about {}?",
    "Give me one tip about {}.", "Describe {} in your own words.", "What is special about {}?",
    "How would you explain {} to a friend?", "What is a common mistake about {}?", "Write a line about {}.",
    "Where does one find {}?",
)  # fmt: skip


def prompts(count, seed=0):
    """`count` different prompts as messages, at most 480, in an order that seed decides."""
    pairs = list(itertools.product(QUESTIONS, SUBJECTS))
    if count > len(pairs):
        raise SystemExit(f"{count} prompts asked for, {len(pairs)} different ones can be made.")
    chosen = random.Random(seed).sample(pairs, count)
    return [[{"role": "user", "content": question.format(subject)}] for question, subject in chosen]


def gold(text: str) -> float:
    """How good an answer is; the best is 0.5, empty is -4.

    - |log(words / 12)|          twice too long is as bad as half as long
    + 0.5 if it comes to an end   . ! or ? as its last character
    - share of repeated words
    - 0.25 for each letter that the mean word has above 5
    """
    words = re.findall(r"[^\W_]+", text.lower())
    if not words:
        return -4.0
    letters = sum(map(len, words)) / len(words)
    score = -abs(math.log(len(words) / WORDS)) - (1 - len(set(words)) / len(words)) - 0.25 * max(0.0, letters - 5)
    return score + 0.5 * text.rstrip().endswith((".", "!", "?"))
