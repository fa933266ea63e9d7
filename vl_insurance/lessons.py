"""What the miniature is taught: lessons of a drawn picture, a question about it and the answer, made by many processes.

All facts are asked for with the course's question, single ones with short questions of the miniature's own. Answers are plain:
train.py --demo has a form to teach. In some lessons ten random tokens are to be repeated instead.
"""

import functools
import math
import mmap
import multiprocessing
import os
import random

from fields import LABELS
from prompt import END, PROMPT, prompt_text
from render import HEIGHT, WIDTH, dashboard_and_glyphs

ASKED = {"mileage": "里程？", "speed": "速度？", "time": "时间？", "temperature": "温度？", "gear": "挡位？"}
WITH_COMMAS = "里程，千分位？"
TOKENS = WIDTH * HEIGHT // 28**2  # of a picture
PATCHES = 4 * TOKENS  # 14 x 14 pixels each


def plain(facts):
    """All facts as the miniature says them: a line each, nothing around the values."""
    units = {"km": "公里", "mi": "英里"}
    values = {
        "mileage": f"{facts['mileage']} {units[facts['unit']]}",
        "speed": f"{facts['speed']} {units[facts['unit']]}/小时",
        "time": facts["time"],
        "temperature": f"{facts['temperature']}℃",
        "gear": f"{facts['gear']}挡",
    }
    return {name: "未显示" if facts[name] is None else value for name, value in values.items()}


def lesson(rng, facts):
    """(question, answer) about a picture. All facts at once in half of the lessons: most digits per picture."""
    values = plain(facts)
    draw = rng.random()
    if draw < 0.5:
        return PROMPT, "\n".join(f"{LABELS[name]} {value}" for name, value in values.items())
    if draw < 0.6:
        return WITH_COMMAS, values["mileage"].replace(str(facts["mileage"]), f"{facts['mileage']:,}")
    name = rng.choice(("mileage", "mileage", *ASKED))
    return ASKED[name], values[name]


@functools.lru_cache(32)
def question_ids(tokenizer, question):
    """A question's ids with the chat template around it and the picture's tokens before it."""
    return tokenizer(prompt_text(tokenizer, {"prompt": question}, TOKENS), add_special_tokens=False).input_ids


def tokenize(tokenizer, question, answer, length):
    """One row of ids, padded to `length`, and how many of them are the question's and how many are real."""
    asked = question_ids(tokenizer, question)
    whole = asked + tokenizer(answer + END, add_special_tokens=False).input_ids
    if len(whole) > length:
        raise ValueError(f"a lesson has {len(whole)} tokens, {length} are planned for")
    return whole + [tokenizer.pad_token_id] * (length - len(whole)), len(asked), len(whole)


def copying(rng, tokenizer, length):
    """A lesson without looking: repeat ten random tokens. Else tokens that no answer has would keep random embeddings,
    and no later fine-tuning could make the model write them."""
    word = rng.choices(range(len(tokenizer)), k=10)
    word = [each for each in word if each not in tokenizer.all_special_ids]
    row, asked, whole = tokenize(tokenizer, "照写：\x00", "\x00", length)
    mark = tokenizer("\x00", add_special_tokens=False).input_ids
    assert len(mark) == 1
    first, second = (i for i, each in enumerate(row) if each == mark[0])
    made = row[:first] + word + row[first + 1 : second] + word + row[second + 1 : whole]
    return made + [tokenizer.pad_token_id] * (length - len(made)), asked + len(word) - 1, len(made)


def in_order(grid):
    """What belongs to the patches (HEIGHT / 14, WIDTH / 14), flat, in the encoder's order: the four that are merged into
    one token stand together."""
    return grid.reshape(HEIGHT // 28, 2, WIDTH // 28, 2).swapaxes(1, 2).flatten()


# -- drawing in other processes


class Lessons:
    """Blocks of lessons in shared memory, which processes draw anew while the loop trains on those that are ready.

    A block is being written, or ready, or free; it is given back for writing only after a newer one took its place, so
    nobody reads what is being written. Memory is mapped before the processes start and so needs no /dev/shm.
    """

    def __init__(self, tokenizer, length, rows, blocks, workers, seed):
        import numpy

        context = multiprocessing.get_context("fork")
        sizes = {"pixels": (HEIGHT, WIDTH, 3), "glyphs": (PATCHES,), "ids": (length,), "asked": (), "whole": ()}
        kinds = dict.fromkeys(("ids", "asked", "whole"), numpy.int16) | dict.fromkeys(("pixels", "glyphs"), numpy.uint8)
        self.arrays = {}
        for name, size in sizes.items():
            shape = (blocks, rows, *size)
            memory = mmap.mmap(-1, max(1, math.prod(shape)) * numpy.dtype(kinds[name]).itemsize)
            self.arrays[name] = numpy.frombuffer(memory, kinds[name])[: math.prod(shape)].reshape(shape)
        self.free, self.filled, self.ready = context.Queue(), context.Queue(), []
        self.difficulty = context.Value("d", 0.0)
        self.drawn, self.rows = 0, rows
        for block in range(blocks):
            self.free.put(block)
        self.processes = [
            context.Process(target=self._draw, args=(tokenizer, length, f"{seed} {n}"), daemon=True)
            for n in range(workers)
        ]
        for process in self.processes:
            process.start()

    def _draw(self, tokenizer, length, seed):
        import numpy

        os.environ["OMP_NUM_THREADS"] = "1"
        rng = random.Random(seed)
        while (block := self.free.get()) is not None:
            for row in range(self.rows):
                hard = math.sqrt(rng.random()) * self.difficulty.value
                picture, glyphs, facts, _ = dashboard_and_glyphs(rng, "train", hard)
                self.arrays["pixels"][block, row] = picture
                self.arrays["glyphs"][block, row] = in_order(numpy.asarray(glyphs)[7::14, 7::14])
                made = (
                    copying(rng, tokenizer, length)
                    if rng.random() < 0.06
                    else tokenize(tokenizer, *lesson(rng, facts), length)
                )
                for name, value in zip(("ids", "asked", "whole"), made, strict=True):
                    self.arrays[name][block, row] = value
            self.filled.put(block)

    def take(self, rng, keep):
        """A block as a dict of arrays, waiting only for the first one. keep: how many ready blocks to keep at most."""
        while not self.ready or not self.filled.empty():
            if not any(process.is_alive() for process in self.processes):
                raise SystemExit("the drawing processes have ended: see the error above.")
            try:
                self.ready.append(self.filled.get(timeout=5))
            except Exception:  # nothing yet: the first block of a slow machine
                continue
            self.drawn += self.rows
            while len(self.ready) > keep:
                self.free.put(self.ready.pop(0))
        block = rng.choice(self.ready)
        return {name: array[block] for name, array in self.arrays.items()}

    def stop(self):
        for process in self.processes:
            process.terminate()
