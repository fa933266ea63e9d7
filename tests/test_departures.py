"""What departs from the course, and the field of course.yaml that takes it back: as the scripts' own parsers read the files.

Left: what a script does otherwise than the course's, as its docstring, its pages and course/migration.md say. Right: the file,
the flag and the value that restore it, or why nothing can. A departure that is not here is not allowed: the docstrings are
searched for theirs.

Where the values come from (November 2026): alpaca, medical and r1_grpo from public copies of the course's scripts and from Unsloth's
public notebooks, s1_scaling from the README of github.com/simplescaling/s1. The heads of the YAML files name them, and say what was not
found there: r1_grpo's r 16; s1_scaling's length of 32,768 and schedule, which the paper has.
"""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN, INFER = "course.yaml", "course_infer.yaml"
NEVER_CUT = "cannot be restored: a row that is cut has no end token and no answer; rows that are too long are dropped and counted"
NO_LEAK = (
    "cannot be restored: rows are held out by question; eval_ratio and held_out take so few that it changes no result"
)
OWN_VLLM = (
    "cannot be restored: on an H100 Unsloth's fast_inference had finished no update after three minutes (RESULTS.md)"
)
# folder -> what departs -> (file, flag, value) or why not. A flag may stand in the file or be a default: what counts is what is parsed.
DEPARTURES = {
    "alpaca": {
        "Unsloth": (TRAIN, "backend", "unsloth"),
        "16-bit weights where they fit": (TRAIN, "quantization", "4bit"),
        "settings chosen by the card's memory": (TRAIN, "auto", False),
        "rows end to end": (TRAIN, "packing", False),
        "rows per step": [(TRAIN, "per_device_train_batch_size", 2), (TRAIN, "gradient_accumulation_steps", 4)],
        "8-bit AdamW": (TRAIN, "optim", "adamw_8bit"),
        "rows without an input have a shorter template": (TRAIN, "one_template", True),
        "every token counts": (TRAIN, "loss_on", "all"),
        "length": (TRAIN, "max_length", 2048),
        "steps": (TRAIN, "max_steps", 60),
        "held-out rows are measured while training": (TRAIN, "eval_strategy", "no"),
        "the best adapter is kept": (TRAIN, "load_best_model_at_end", False),
        "decoding": [(INFER, "max_new_tokens", 128), (INFER, "temperature", 0.7)],
        "a tenth of the rows is held out": NO_LEAK,
        "too long": NEVER_CUT,
        "packed rows cannot see each other": "cannot be restored, and need not: the course does not pack",
    },
    "medical": {
        "Unsloth": (TRAIN, "backend", "unsloth"),
        "16-bit weights where they fit": (TRAIN, "quantization", "4bit"),
        "settings chosen by the card's memory": (TRAIN, "auto", False),
        "rows end to end": (TRAIN, "packing", False),
        "rows per step": [(TRAIN, "per_device_train_batch_size", 2), (TRAIN, "gradient_accumulation_steps", 4)],
        "8-bit AdamW": (TRAIN, "optim", "adamw_8bit"),
        "the loss counts only the answer": (TRAIN, "loss_on", "all"),
        "length": (TRAIN, "max_length", 2048),
        "characters": (TRAIN, "max_chars", 200),
        "epochs": (TRAIN, "num_train_epochs", 3),
        "held-out rows are measured while training": (TRAIN, "eval_strategy", "no"),
        "the best adapter is kept": (TRAIN, "load_best_model_at_end", False),
        "decoding": [
            (INFER, "max_new_tokens", 256), (INFER, "temperature", 0.7),
            (INFER, "top_p", 0.9), (INFER, "repetition_penalty", 1.1),
        ],
        "held-out questions never occur in training": NO_LEAK,
        "too long": NEVER_CUT,
        "all departments are read, in any encoding": "cannot be restored: the course lost departments and characters without a word",
    },
    "r1_grpo": {
        "Unsloth": (TRAIN, "backend", "unsloth"),
        "16-bit weights where they fit": (TRAIN, "quantization", "4bit"),
        "system prompt": (
            TRAIN, "system_prompt",
            "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n",
        ),
        "rewards that pay as they say": (TRAIN, "rewards", "course"),
        "4 prompts per update": (TRAIN, "gradient_accumulation_steps", 1),
        "completions per prompt": (TRAIN, "num_generations", 6),
        "512 tokens": (TRAIN, "max_completion_length", 200),
        "r 32": [(TRAIN, "lora_r", 16), (TRAIN, "lora_alpha", 16)],
        "mean per completion": (TRAIN, "loss_type", "grpo"),
        "clipping": (TRAIN, "max_grad_norm", 0.1),
        "8-bit AdamW": (TRAIN, "optim", "paged_adamw_8bit"),
        "checkpoints on the way": (TRAIN, "save_steps", 250),
        "groups that all earn the same stop": (TRAIN, "dead_steps", 0),
        "rollouts by TRL's own vLLM": (TRAIN, "rollouts", "hf"),
        "decoding": [(INFER, "max_new_tokens", 1024), (INFER, "temperature", 0.8), (INFER, "top_p", 0.95)],
        "KL in the paper's form": "cannot be restored, and need not: the TRL that the course pinned had no other form",
        "Unsloth's vLLM": OWN_VLLM,
    },
    "s1_scaling": {
        "settings chosen by the card's memory": (TRAIN, "auto", False),
        "4-bit weights where 16 do not fit": (TRAIN, "quantization", "none"),
        "system prompt": (
            TRAIN, "system_prompt", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        "length": (TRAIN, "max_length", 32768),
        "rows end to end": (TRAIN, "packing", False),
        "16 rows per update": [(TRAIN, "per_device_train_batch_size", 1), (TRAIN, "gradient_accumulation_steps", 16)],
        "schedule": [
            (TRAIN, "num_train_epochs", 5), (TRAIN, "lr_scheduler_type", "cosine"), (TRAIN, "warmup_steps", 0.05),
            (TRAIN, "weight_decay", 1e-4), (TRAIN, "adam_beta2", 0.95),
        ],
        "decoding": [
            (INFER, "max_think", 32000), (INFER, "num_ignore", 1), (INFER, "wait", "Wait"), (INFER, "temperature", 0.0),
        ],
        "LoRA at 1e-4": "cannot be restored: this repository trains adapters, and the paper's 1e-5 is for all weights",
        "don't fit are dropped": NEVER_CUT,
        "padding has its own token": "cannot be restored: where padding is the end token, the end is not learned",
    },
}  # fmt: skip

# parts of the docstrings' sentences that say why, or how, or what not, of the part before
REASONS = (
    "not cut", "never cut (a cut trace has no end and no answer)", "not 1", "for less noise", "not 200",
    "since an answer that is cut off earns nothing", "else by a decoder that needs none (rollout.py)",
)  # fmt: skip


def restored(folder):
    """(what departs, file, flag, value) of all that can be restored."""
    for departs, how in DEPARTURES[folder].items():
        for each in how if isinstance(how, list) else [how]:
            if not isinstance(each, str):
                yield departs, *each


@pytest.fixture
def parsed(modules_of):
    """folder -> file -> what its script's parser makes of the file."""

    def of(folder):
        light = ("data", "prompt", "rewards", "engine", "rewards_course", "budget", "suggest", "train", "infer")
        read = modules_of(folder, [name for name in light if (ROOT / folder / f"{name}.py").is_file()])
        cli = importlib.import_module("common.cli")
        trainer = "trl:GRPOConfig" if folder == "r1_grpo" else "trl:SFTConfig"
        path = ROOT / folder
        return {
            TRAIN: cli.parse(read.train.__file__, read.train.DEFAULTS, read.train.DEMO, read.train.Args, trainer,
                             ["--config", str(path / TRAIN)]),
            INFER: cli.parse(read.infer.__file__, read.infer.DEFAULTS, {}, read.infer.Args,
                             argv=["--config", str(path / INFER)]),
        }  # fmt: skip

    return of


@pytest.mark.parametrize("folder", DEPARTURES)
def test_the_files_restore_what_departs_and_say_nothing_else(folder, parsed):
    import yaml

    found = parsed(folder)
    known = {TRAIN: set(), INFER: set()}
    for departs, file, flag, value in restored(folder):
        assert getattr(found[file], flag) == value, (departs, file, flag)
        known[file].add(flag)
    # what a file changes for no departure that is listed
    free = {TRAIN: set(), INFER: {"max_answer"}}  # s1: what the context leaves
    for file, flags in known.items():
        given = set(yaml.safe_load((ROOT / folder / file).read_text("utf-8")))
        assert given <= flags | free[file], (file, given - flags)


@pytest.mark.parametrize("folder", DEPARTURES)
def test_every_departure_that_a_docstring_tells_is_in_the_table(folder):
    text = (ROOT / folder / "train.py").read_text("utf-8").split('"""')[1]
    told = re.search(r"[Ww]hat departs from .*?: (.*?)(?:\.\n\n|\.\Z)", text, re.DOTALL)[1]
    told = re.split(r"[;,] (?:and )?", " ".join(told.split()))
    lost = [part for part in told if part not in REASONS and not any(name in part for name in DEPARTURES[folder])]
    assert len(told) > 2 and not lost, lost
    for how in DEPARTURES[folder].values():
        assert not isinstance(how, str) or re.match("cannot be restored(: |, and need not: )", how)


def test_one_template_is_the_long_one_with_an_empty_input(modules_of):
    prompt = modules_of("alpaca", ("prompt",)).prompt
    row = {"instruction": "Name three rivers.", "input": ""}
    asked = prompt.prompt_text(row, prompt.one_template())
    assert asked == prompt.PROMPT.format(instruction="Name three rivers.", input="") != prompt.prompt_text(row)
    assert "### Input:\n\n\n### Response:" in asked
    whole = row | {"input": "In Asia."}
    assert prompt.prompt_text(whole, prompt.one_template()) == prompt.prompt_text(whole)


@pytest.mark.parametrize("folder", ["r1_grpo", "s1_scaling"])
def test_a_system_prompt_of_ones_own_is_what_is_asked(folder, modules_of):
    """train.py puts it into TEMPLATE, from which everything there builds its prompts, and which is saved beside the adapter."""
    prompt = modules_of(folder, ("prompt",)).prompt

    class Tokenizer:
        def apply_chat_template(self, talk, **_):
            return [each["content"] for each in talk]

    row, default = {"question": "2 + 2?"}, prompt.SYSTEM
    assert prompt.prompt_ids(Tokenizer(), [row]) == [[default, "2 + 2?"]]
    prompt.TEMPLATE["system_prompt"] = "Be brief."
    assert prompt.prompt_ids(Tokenizer(), [row]) == [["Be brief.", "2 + 2?"]]
    assert prompt.prompt_ids(Tokenizer(), [row], {"system_prompt": "As saved."}) == [["As saved.", "2 + 2?"]]
    assert prompt.prompt_ids(Tokenizer(), [row], {}) == [[default, "2 + 2?"]]  # a run that saved none
    main = (ROOT / folder / "train.py").read_text("utf-8")
    assert 'TEMPLATE["system_prompt"] = args.system_prompt or SYSTEM' in main and "tokenizer, **TEMPLATE)" in main
