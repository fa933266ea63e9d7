"""Adapters, models and reward models that are damaged or do not fit: one line each, before anything answers."""

import importlib
import json
import math
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.cli import LINEAR
from common.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEIGHTS = "adapter_model.safetensors"


def tiny_tokenizer(folder):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({each: i for i, each in enumerate(SPECIAL + alphabet)}, []))
    words.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def adapt(model, folder, task_type="CAUSAL_LM", targets=LINEAR):
    """An adapter whose every matrix counts, of rank 4 and alpha 8."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(task_type=task_type, r=4, lora_alpha=8, target_modules=targets))
    for name, each in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folders: model, reward, and of each task a finished run with all that its scripts read."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    vocabulary, ids = 262, dict(eos_token_id=2, pad_token_id=0, bos_token_id=0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    shape |= dict(intermediate_size=64, vocab_size=vocabulary, max_position_embeddings=4096)
    LlamaForCausalLM(LlamaConfig(**shape, **ids)).save_pretrained(root / "model")
    tiny_tokenizer(root / "model")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    seeing = Qwen2_5_VLConfig(
        text_config=shape | ids | dict(rope_parameters=rope, tie_word_embeddings=True),
        vision_config=dict(hidden_size=32, intermediate_size=64, depth=2, num_heads=4, out_hidden_size=32,
                           fullatt_block_indexes=[0, 1]),
        image_token_id=5, vision_start_token_id=3, vision_end_token_id=4, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(seeing).save_pretrained(root / "vl_model")
    tiny_tokenizer(root / "vl_model")

    def load(kind, name="model", **more):
        return kind.from_pretrained(root / name, dtype=torch.float32, **more)

    def run(task, model, arguments, texts, **more):
        folder = root / task
        tiny_tokenizer(folder)
        write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json")
                   | {"base_model_name_or_path": str(root / model)})  # fmt: skip
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
        arguments = {"model": str(root / model), "lora_r": 4, "lora_alpha": 8} | arguments
        write_json(folder / "run.json", {"status": "finished", "finished": 1.0, "arguments": arguments} | more)

    for task in ("alpaca", "r1_grpo", "rlhf_ppo"):
        adapt(load(LlamaForCausalLM), root / task)
    adapt(load(LlamaForSequenceClassification, num_labels=1), root / "reward", "SEQ_CLS")
    both = r"(?:.*\.)?(?:language_model\.layers\.\d+\.mlp\.up_proj|visual\.blocks\.\d+\.attn\.qkv)"
    adapt(load(Qwen2_5_VLForConditionalGeneration, "vl_model"), root / "vl_insurance", targets=both)
    rows = [{"instruction": f"Name {n} rivers.", "input": "", "output": "Rhine."} for n in range(6)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {"prompt_template": "{instruction}\n{input}\n", "prompt_template_short": "{instruction}\n"}
    trained = {"data": str(root / "rows.jsonl"), "eval_ratio": 0.5, "split_seed": 1, "max_length": 200}
    run("alpaca", "model", trained, template)
    sums = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(12)]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    asked = {"data": str(root / "sums.jsonl"), "max_completion_length": 2, "max_prompt_tokens": 100}
    run("r1_grpo", "model", asked, {"system_prompt": "Think."})
    judged = {"reward": str(root / "reward"), "quantization": "none"}
    run("rlhf_ppo", "model", judged, {}, stage="ppo", inputs={"model": "x"})
    from PIL import Image

    Image.new("RGB", (56, 56)).save(root / "photo.png")
    write_json(root / "vl_insurance" / "preprocessor_config.json", {"max_pixels": 3136})
    run("vl_insurance", "vl_model", {"data": None}, {"prompt": "What do you see?"})
    with folder_of("rlhf_ppo") as task:
        found = dict(fingerprint=task("stage").fingerprint(root / "model"), model="tiny", quantization="none")
    write_json(root / "reward" / "reward.json", found | dict(sft_mean=0.1, sft_std=0.5, held_out={"accuracy": 0.5}))
    return root


STEMS = {
    each.name: {file.stem for file in each.glob("*.py")} for each in ROOT.iterdir() if (each / "Dockerfile").is_file()
}
KEPT = {}  # task -> its modules, which are imported once


@contextmanager
def folder_of(task):
    """While it lasts the folder's modules are those that plain names mean; yields importlib.import_module."""
    before = {name: sys.modules.pop(name, None) for name in STEMS[task]}
    sys.path.insert(0, str(ROOT / task))
    sys.modules.update(KEPT.get(task, {}))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(ROOT / task))
        KEPT[task] = {name: sys.modules.pop(name) for name in STEMS[task] & set(sys.modules)}
        sys.modules.update({name: module for name, module in before.items() if module})


ASKED = {
    "alpaca": ("infer", ["--adapter", "alpaca", "--instruction", "Hello", "--max_new_tokens", "1"]),
    "alpaca evaluate": ("evaluate", ["--adapter", "alpaca", "--max_new_tokens", "1", "--limit", "1"]),
    "r1_grpo": ("infer", ["--adapter", "r1_grpo", "--max_new_tokens", "1"]),
    "r1_grpo evaluate": ("evaluate", ["--adapter", "r1_grpo", "--max_new_tokens", "1", "--limit", "1"]),
    "rlhf_ppo": ("infer", ["--ppo", "rlhf_ppo", "--reward", "reward", "--model", "model", "--max_new_tokens", "1"]),
    "rlhf_ppo merge": ("merge", ["--adapter", "alpaca", "--model", "model", "--output_dir", "merged"]),
    "vl_insurance": (
        "infer",
        ["--adapter", "vl_insurance", "--image", "photo.png", "--max_new_tokens", "1", "--max_pixels", "3136"],
    ),
}


def ask(way, root, monkeypatch):
    """Run a script of a folder on the folders in `root`, in this process."""
    monkeypatch.setenv("OUTPUT_DIR", str(root / "outputs"))
    script, flags = ASKED[way]
    argv = [str(root / each) if (root / each).exists() or each == "merged" else each for each in flags]
    if "--model" not in argv and way != "rlhf_ppo merge":
        argv += ["--model", str(root / ("vl_model" if way == "vl_insurance" else "model"))]
    with folder_of(way.split()[0]) as task:
        return task(script).main(argv)


@pytest.fixture
def copy(made, tmp_path):
    """The folders, to be damaged: what is not written to is linked."""

    def linked(source, target):
        os.link(source, target) if source.endswith(("png", "jsonl")) else shutil.copyfile(source, target)

    root = tmp_path / "copy"
    shutil.copytree(made, root, copy_function=linked)
    return root


def weights_of(folder, change, name=WEIGHTS):
    """change: what is given the tensors (name -> tensor) and returns the new ones."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def settings(name="adapter_config.json", **more):
    def damage(folder):
        write_json(folder / name, read_json(folder / name) | more)

    return damage


def weights(change):
    return lambda folder: weights_of(folder, change)


def one(tensors, part):
    return next(name for name in tensors if part in name)


def with_one(part, change):
    """The tensors, one of them changed: the first whose name holds `part`."""
    return lambda tensors: tensors | {one(tensors, part): change(tensors[one(tensors, part)])}


def without(part):
    return lambda tensors: {name: each for name, each in tensors.items() if part not in name}


def more_words(folder):
    state = read_json(folder / "tokenizer.json")
    state["model"]["vocab"] |= {f"word{n}": 262 + n for n in range(9)}
    write_json(folder / "tokenizer.json", state)


def as_folder(file):
    file.unlink()
    file.mkdir()


BYTES = {
    "cut off": lambda file: os.truncate(file, max(1, file.stat().st_size // 2)),
    "empty": lambda file: os.truncate(file, 0),
    "of NUL": lambda file: file.write_bytes(bytes(200)),
    "a folder": as_folder,
    "an error page": lambda file: file.write_bytes(b"<html>403</html>"),
}  # what can happen to any file
LISTS = {
    "a list": lambda file: file.write_text("[1]"),
    "a word": lambda file: file.write_text('"x"'),
    "latin-1": lambda file: file.write_bytes('{"é": 1}'.encode("latin-1")),
}  # and to JSON
ADAPTER = {
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no tensors": weights(lambda tensors: {}),
    "tensors without numbers": weights(lambda tensors: {name: each[:0].clone() for name, each in tensors.items()}),
    "renamed": weights(lambda tensors: {name.replace("lora_A", "lora_X"): each for name, each in tensors.items()}),
    "of another prefix": weights(lambda tensors: {name.removeprefix("base_model."): e for name, e in tensors.items()}),
    "one missing": weights(without("layers.1.mlp.up_proj.lora_B")),
    "a layer missing": weights(without("layers.1.")),
    "one kind missing": weights(without("up_proj")),
    "one too many": weights(
        lambda tensors: (
            tensors | {one(tensors, "lora_A").replace("layers.0", "layers.7"): 0 + tensors[one(tensors, "lora_A")]}
        )
    ),
    "NaN": weights(with_one("lora_B", lambda each: each * math.nan)),
    "one infinite": weights(
        with_one("lora_A", lambda each: each.clone().index_fill_(0, each.new_tensor([0]).long(), math.inf))
    ),
    "another width": weights(with_one("up_proj.lora_B", lambda each: each[:-8].clone())),
    "another rank": settings(r=8),
    "fewer targets": settings(target_modules=["q_proj"]),
    "more targets": settings(target_modules=[*LINEAR, "lm_head"]),
    "no targets": settings(target_modules=[]),
    "targets a number": settings(target_modules=3),
    "rank a word": settings(r="four"),
    "rank negative": settings(r=-4),
    "rank null": settings(r=None),
    "alpha changed": settings(lora_alpha=800),
    "alpha a word": settings(lora_alpha="x"),
    "alpha a list": settings(lora_alpha=[1]),
    "alpha NaN": settings(lora_alpha=math.nan),
    "alpha zero": settings(lora_alpha=0),
    "another kind": settings(peft_type="IA3"),
    "an unknown kind": settings(peft_type="SORA"),
    "no kind": settings(peft_type=None),
    "unknown task": settings(task_type="DREAM"),
    "pattern a list": settings(rank_pattern=[1]),
    "dropout a word": settings(lora_dropout="x"),
    "a larger tokenizer": lambda folder: more_words(folder),
}  # what an adapter's folder can suffer
MODEL = {
    "another width": settings("config.json", hidden_size=48),
    "too few layers": settings("config.json", num_hidden_layers=1),
    "too many layers": settings("config.json", num_hidden_layers=3),
    "layers a word": settings("config.json", num_hidden_layers="two"),
    "heads null": settings("config.json", num_attention_heads=None),
    "another vocabulary": settings("config.json", vocab_size=100),
    "unknown type": settings("config.json", model_type="llamb"),
    "no type": settings("config.json", model_type=None),
    "an unknown activation": settings("config.json", hidden_act="sulu"),
    "one weight missing": lambda folder: weights_of(folder, without("layers.1.mlp.up_proj"), "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
}
REWARD = {
    "no fingerprint": lambda folder: write_json(folder / "reward.json", {"sft_mean": 0.0}),
    "mean a word": settings("reward.json", sft_mean="x"),
    "std zero": settings("reward.json", sft_std=0.0),
    "std NaN": settings("reward.json", sft_std=math.nan),
    "std null": settings("reward.json", sft_std=None),
    "no head": weights(without("score")),
    "head NaN": weights(with_one("score", lambda each: each * math.nan)),
    "head of another width": weights(with_one("score", lambda each: each[:, :8].clone())),
    "head of two": weights(with_one("score", lambda each: each.repeat(2, 1))),
    "renamed": weights(lambda tensors: {name.replace("lora_A", "lora_X"): each for name, each in tensors.items()}),
    "fewer targets": settings(target_modules=["q_proj"]),
    "NaN": weights(with_one("lora_B", lambda each: each * math.nan)),
}


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


TEXTS = {
    "no instruction": text("prompt_template.txt", b"### Input: {input}"),
    "no input": text("prompt_template.txt", b"### Instruction: {instruction}"),
    "cut off": text("prompt_template_short.txt", b"### Instruction: {instr"),
    "empty": text("prompt_template_short.txt", b""),
    "short one missing": lambda folder: (folder / "prompt_template_short.txt").unlink(),
    "not UTF-8": text("prompt_template.txt", b"\xff\xfe{instruction}{input}"),
}
RECORD = {
    "arguments a list": settings("run.json", arguments=[1]),
    "no arguments": settings("run.json", arguments={}),
    "ratio a word": settings(
        "run.json", arguments={"data": "rows.jsonl", "eval_ratio": "x", "split_seed": 1, "max_length": 9}
    ),
    "data a number": settings("run.json", arguments={"data": 3, "eval_ratio": 0.1, "split_seed": 1, "max_length": 9}),
    "task a list": settings("run.json", task=["x"]),
}
BYTE = BYTES | LISTS
CASES = [
    *(("alpaca", "alpaca", "adapter_config.json", name) for name in BYTE),
    *(("alpaca evaluate", "alpaca", "run.json", name) for name in BYTE),
    *(("alpaca", "alpaca", WEIGHTS, name) for name in BYTES),
    *(("r1_grpo", "r1_grpo", "tokenizer.json", name) for name in BYTE),
    *(("r1_grpo", "r1_grpo", "tokenizer_config.json", name) for name in BYTE),
    *(("rlhf_ppo", "reward", "reward.json", name) for name in BYTE),
    *(("rlhf_ppo", "rlhf_ppo", "run.json", name) for name in BYTE),
    *(("rlhf_ppo", "reward", WEIGHTS, name) for name in BYTES),
    *(("rlhf_ppo", "reward", "adapter_config.json", name) for name in ("cut off", "a list")),
    *(("r1_grpo", "model", "config.json", name) for name in BYTE),
    *(("alpaca", "model", "generation_config.json", name) for name in ("cut off", "a list", "a folder")),
    *(("alpaca", "model", "model.safetensors", name) for name in BYTES),
    *(("vl_insurance", "vl_insurance", "adapter_config.json", name) for name in ("cut off", "a list", "a folder")),
    *(("vl_insurance", "vl_model", "config.json", name) for name in ("cut off", "a list", "a folder")),
    *(("alpaca", "alpaca", ADAPTER, name) for name in ADAPTER),
    *(
        ("rlhf_ppo", "rlhf_ppo", ADAPTER, name)
        for name in ("renamed", "a layer missing", "NaN", "fewer targets", "alpha changed")
    ),
    *(("rlhf_ppo merge", "alpaca", ADAPTER, name) for name in ("renamed", "one missing", "NaN", "rank a word")),
    *(
        ("vl_insurance", "vl_insurance", ADAPTER, name)
        for name in ("renamed", "one missing", "NaN", "no targets", "another rank")
    ),
    *(("r1_grpo", "model", MODEL, name) for name in MODEL),
    *(("vl_insurance", "vl_model", MODEL, name) for name in ("unknown type", "no weights")),
    *(("rlhf_ppo", "reward", REWARD, name) for name in REWARD),
    *(("alpaca", "alpaca", TEXTS, name) for name in TEXTS),
    *(("alpaca evaluate", "alpaca", RECORD, name) for name in RECORD),
    *(("rlhf_ppo", "rlhf_ppo", RECORD, name) for name in ("arguments a list", "no arguments", "task a list")),
]  # (script, the folder that is damaged, its file or a table of damages, the damage)


@pytest.mark.parametrize("way", ASKED)
def test_what_is_whole_answers(made, copy, monkeypatch, way):
    ask(way, copy, monkeypatch)


@pytest.mark.parametrize(
    ("way", "folder", "where", "name"), CASES, ids=lambda each: each if isinstance(each, str) else ""
)
def test_what_is_damaged_is_refused_in_a_line_that_names_it(copy, monkeypatch, way, folder, where, name):
    damage = where[name] if isinstance(where, dict) else BYTE[name]
    damage(copy / folder if isinstance(where, dict) else copy / folder / where)
    began = time.perf_counter()
    with pytest.raises(SystemExit) as refused:
        ask(way, copy, monkeypatch)
    assert time.perf_counter() - began < 5
    said = refused.value.code
    assert isinstance(said, str) and "\n" not in said and len(said) < 700, said
    assert str(copy / folder) in said, said
    if isinstance(where, str):
        assert where in said, said


def test_an_adapter_that_changes_nothing_says_so(copy, monkeypatch, capsys):
    """One step of a warm-up leaves B at 0, so it is no fault; but it is said."""
    weights_of(copy / "alpaca", lambda tensors: {n: 0 * each if "lora_B" in n else each for n, each in tensors.items()})
    ask("alpaca", copy, monkeypatch)
    assert f"{copy / 'alpaca' / WEIGHTS}: every lora_B is 0" in capsys.readouterr().err


def test_the_one_place_that_loads_adapters_and_models(made):
    """Everything else would have to look for surprises itself."""
    found = []
    for file in [*ROOT.glob("*/*.py"), *ROOT.glob("common/speed/*.py")]:
        if file.parent.name in ("tests", "bench", "deploy", "tools") or file.parent.name.startswith("."):
            continue
        for line in file.read_text().splitlines():
            if re.search(
                r"PeftModel\.from_pretrained|\.load_adapter\(|torch\.load\(|(Model|Generation)\w*\.from_pretrained\(",
                line,
            ):
                found.append((f"{file.parent.name}/{file.name}", line.strip()))
    at = {name for name, _ in found}
    unsloth = {"common/models.py", "vl_insurance/model.py"}
    own = {"lora_variants/variants.py", "vl_insurance/pretrain.py"}  # of their own runs
    assert at == {"common/adapters.py", "common/runs.py", "common/demo_model.py"} | own | unsloth, found
    assert all("Fast" in line for name, line in found if name in unsloth)
    assert all("weights_only=True" in line for _, line in found if "torch.load" in line)


# -- training that stops being finite


ROWS = ["--data", "rows.jsonl", "--eval_ratio", "0.3", "--max_length", "200", "--lora_r", "4", "--show_answers", "0"]
SHORT = ["--max_steps", "12", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1", "--use_cpu", "true",
         "--bf16", "false", "--gradient_checkpointing", "false", "--loss_type", "nll", "--auto", "false"]  # fmt: skip


def sft(root, monkeypatch, *flags):
    """alpaca/train.py on the tiny model. Returns the run's folder."""
    monkeypatch.setenv("OUTPUT_DIR", str(root / "outputs"))
    argv = [str(root / each) if each == "rows.jsonl" else each for each in ROWS + SHORT]
    with folder_of("alpaca") as task:
        task("train").main(
            ["--model", str(root / "model"), *argv, "--output_dir", str(root / "outputs" / "run"), *flags]
        )
    return root / "outputs" / "run"


def test_a_training_that_becomes_nan_is_stopped_and_is_not_the_newest(copy, monkeypatch):
    from safetensors.torch import load_file

    from common import models

    # The first update already throws the logits out of float32's range.
    with pytest.raises(SystemExit) as stopped:
        sft(copy, monkeypatch, "--learning_rate", "9e18", "--lora_alpha", str(9 * 10**18), "--warmup_steps", "0")
    folder = copy / "outputs" / "run"
    said = stopped.value.code
    assert "\n" not in said and "lower --learning_rate" in said and str(folder) in said, said
    record = read_json(folder / "run.json")
    assert record["status"] == "unfinished" and "not finite" in record["stopped_by"]
    assert not (folder / WEIGHTS).exists() and (folder / "metrics.jsonl").exists()
    for kept in folder.glob("checkpoint-*/" + WEIGHTS):
        assert all(each.isfinite().all() for each in load_file(kept).values())
    monkeypatch.setattr(models, "output_dir", lambda: copy / "outputs")
    with pytest.raises(SystemExit, match="no finished run"):
        models.latest()


def test_one_gradient_that_is_nan_is_left_out_and_the_training_finishes(copy, monkeypatch):
    import torch

    broken, tensor = [], torch.Tensor.backward

    def backward(loss, *more, **named):
        broken.append(len(broken) in (3, 4))
        return tensor(loss * math.nan if broken[-1] else loss, *more, **named)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    folder = sft(copy, monkeypatch)
    assert any(broken) and read_json(folder / "run.json")["status"] == "finished"
    from safetensors.torch import load_file

    assert all(each.isfinite().all() for each in load_file(folder / WEIGHTS).values())


def test_weights_that_are_not_finite_are_not_saved(copy, monkeypatch):
    """Whatever made them so: here the optimizer's last step."""
    import torch

    step = torch.optim.AdamW.step

    def spoilt(self, *more, **named):
        made = step(self, *more, **named)
        self.param_groups[0]["params"][0].data[0, 0] = math.nan
        return made

    monkeypatch.setattr(torch.optim.AdamW, "step", spoilt)
    with pytest.raises(SystemExit, match="not finite|NaN or inf"):
        sft(copy, monkeypatch, "--max_steps", "1", "--save_strategy", "no", "--eval_strategy", "no",
            "--load_best_model_at_end", "false")  # fmt: skip
    folder = copy / "outputs" / "run"
    assert read_json(folder / "run.json")["status"] == "unfinished" and not (folder / WEIGHTS).exists()


def guarded(fp16, count, value="inf"):
    """What the guard says to `count` updates whose gradient is not finite, and one that is."""
    import torch

    from common.finite import GradientGuard

    weight, guard = torch.nn.Linear(2, 1), GradientGuard()
    args, state = SimpleNamespace(fp16=fp16, output_dir="/runs/a"), SimpleNamespace(global_step=0)
    optimizer = torch.optim.SGD(weight.parameters(), 1.0)
    for each in [value] * count + ["1"]:
        for parameter in weight.parameters():
            parameter.grad = torch.full_like(parameter, float(each))
        guard.on_pre_optimizer_step(args, state, None, model=weight, optimizer=optimizer)
        state.global_step += 1
    return guard


def test_fp16_may_look_for_its_scale(capsys):
    """Its loss scale is halved at each gradient that overflows, on purpose."""
    assert guarded(True, 39).skipped == 39 and guarded(False, 4).skipped == 4
    with pytest.raises(SystemExit, match=r"five|5 gradients in a row.*/runs/a.*lower --learning_rate"):
        guarded(False, 5)
    with pytest.raises(SystemExit, match=r"40 gradients in a row.*--bf16 true"):
        guarded(True, 40)


@pytest.mark.parametrize(("logs", "stops"), [
    ({"loss": math.nan}, True), ({"loss": math.inf}, True), ({"eval_loss": math.nan}, True), ({"loss": 2.0}, False),
    ({"train_loss": math.nan}, False), ({"grad_norm": math.inf}, False),
])  # fmt: skip
def test_a_loss_that_is_not_finite_ends_the_run(logs, stops):
    from common.finite import GradientGuard

    guard, state = GradientGuard(), SimpleNamespace(global_step=7)
    args = SimpleNamespace(fp16=False, output_dir="/runs/a")
    if not stops:
        return guard.on_log(args, state, None, logs=logs)
    with pytest.raises(SystemExit, match=f"step 7: {next(iter(logs))} is"):
        guard.on_log(args, state, None, logs=logs)
    guard.skipped += 1  # that update was left out: its loss harms nothing, held-out loss is another matter
    if "loss" in logs:
        guard.on_log(args, state, None, logs=logs)
    with pytest.raises(SystemExit):
        guard.on_log(args, state, None, logs=logs)


def test_every_trainer_has_the_guard():
    """A loop that steps an optimizer asks the guard, or a trainer's run does (runs.Run.train)."""
    for file in sorted({*ROOT.glob("*/*.py")}):
        if not (file.parent / "Dockerfile").is_file() or file.parent.name == "math_demos":
            continue
        source = file.read_text()
        if "optimizer.step()" in source and file.name != "trial.py":  # to compare.py a trial that diverges is a result
            assert "guard.takes(" in source or "from common.finite import stop" in source, file
        if re.search(r"\b(SFT|GRPO|)Trainer\(", source):
            assert re.search(r"run\.(train|go_on)\(trainer\)", source) and "trainer.train(" not in source, file
            assert (
                "logging_nan_inf_filter=False" in source or "without(DEFAULTS" in source or "train.DEFAULTS" in source
            ), file


def test_an_adapter_of_ppo_that_is_not_finite_is_not_saved(made, tmp_path):
    import torch
    from transformers import LlamaForCausalLM

    with folder_of("rlhf_ppo") as task:
        backbone = task("backbone")
        model = backbone.add_adapter(LlamaForCausalLM.from_pretrained(made / "model"), "policy", made / "rlhf_ppo")
        next(p for n, p in model.named_parameters() if "lora_A.policy" in n).data[0, 0] = torch.nan
        with pytest.raises(SystemExit, match="NaN or inf"):
            backbone.save_adapter(model, "policy", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
