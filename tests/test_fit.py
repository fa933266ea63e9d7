"""The memory formula against peaks measured on GPUs, and what --estimate says of cards."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.speed import fit

ROOT = Path(__file__).resolve().parents[1]

# bench/results/sft_speed.json, every row of one GPU: a 7B shape on an H200, LoRA r 16. tokens: of the run's largest
# micro-batch, padding too. 8,162 was noted by the runs; the others follow from the rows' order under seed 3407, with
# lengths by another tokenizer times 0.955, which is right for those that were noted.
MEASURED = {  # tokens, 4-bit, checkpointing, code, bytes an adapter parameter, peak GB
    "course": (1155, True, True, "unsloth", 10, 6.9),
    "trl_peft_4bit": (1155, True, True, "plain", 10, 7.0),
    "trl_peft_bf16_32_padded": (23_064, False, True, "plain", 16, 29.3),
    "unsloth_4bit_packed": (8162, True, True, "unsloth", 16, 8.1),
    "unsloth_bf16_packed": (8162, False, True, "unsloth", 16, 17.7),
    "packed_peft": (13_906, False, False, "liger", 16, 90.4),
    "same_updates": (2337, False, False, "fast", 16, 23.9),
    "same_updates_4bit": (2337, True, False, "fast", 16, 14.3),
    "fast": (13_906, False, False, "fast", 16, 63.3),
    "fast_48gb": (8162, False, False, "fast", 16, 44.2),
    "fast_4bit_40gb": (8162, True, False, "fast", 16, 34.6),
    "fast_24gb": (8162, False, True, "fast", 16, 19.0),
    "fast_4bit_16gb": (8162, True, True, "fast", 16, 9.4),
    # 8-bit products keep two 8-bit copies of a weight, which are as large as one in 16 bits.
    "fast_fp8": (13_906, False, False, "fast", 16, 63.7),
    "fast_fp8_48gb": (8162, False, False, "fast", 16, 44.4),
    "fast_fp8_24gb": (8162, False, True, "fast", 16, 19.2),
}
SMOL = dict(hidden=576, ffn=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152, tied=True)


@pytest.mark.parametrize("name", MEASURED)
def test_formula_against_measured_peaks(name):
    tokens, four_bit, checkpointing, code, adapter, peak = MEASURED[name]
    parts = fit.needs(fit.QWEN["7B"], tokens, 16, four_bit, checkpointing, code, adapter)
    assert sum(parts.values()) / 1e9 == pytest.approx(peak, rel=0.10)


def test_every_measured_row_is_checked():
    rows = json.loads((ROOT / "bench/results/sft_speed.json").read_text())
    assert {row["name"]: row["peak_gb"] for row in rows if row["gpus"] == 1} == {
        n: row[-1] for n, row in MEASURED.items()
    }


def test_formula_against_measured_grpo():
    """r1_grpo/README.md: 24 completions of 512 tokens by a 7B shape, 6 at once; 128 of 96 by SmolLM2-135M, after a
    warm-up. Prompts of up to 256 and of 85 tokens."""
    large = fit.needs(fit.QWEN["7B"], 6 * 768, 32, False, True, "plain", 16, 8 * 6 * 512, cached=24 * 768)
    assert sum(large.values()) / 1e9 == pytest.approx(22.1, rel=0.15)
    small = fit.needs(SMOL, 128 * 181, 32, False, False, "plain", 20, 8 * 128 * 96, cached=128 * (128 + 96))
    assert sum(small.values()) / 1e9 == pytest.approx(26.6, rel=0.15)


@pytest.mark.parametrize(
    "tokens, checkpointing, code, peak",
    [
        (4281, True, "fast", 18.73),
        (4281, False, "fast", 34.14),
        (9888, True, "fast", 20.0),
        (9888, True, "plain", 21.8),
    ],
)
def test_formula_against_measured_pairs(tokens, checkpointing, code, peak):
    """preference/RESULTS.md: 8 pairs at once by a 7B shape. tokens: of both sides of the largest micro-batch, as
    bench/preference_speed.py draws and shuffles them; of the last two rows padding, too."""
    parts = fit.needs(fit.QWEN["7B"], tokens, 16, False, checkpointing, code, logits=12 * 1024)
    assert sum(parts.values()) / 1e9 == pytest.approx(peak, rel=0.10)
    assert parts["at work"] >= 152_064 * 12 * 1024  # the logits are there with the fast code, too


@pytest.mark.parametrize(
    "name, four_bit, code",
    [("unsloth_4bit", True, "unsloth"), ("hf_4bit", True, "plain"), ("hf_16bit", False, "plain")],
)
def test_formula_against_pictures(name, four_bit, code):
    """bench/vl_speed.py's rows: two photos of 1280 x 640 at once, 46 x 23 tokens each, four patches a token."""
    row = next(r for r in json.loads((ROOT / "bench/results/vl_speed.json").read_text()) if r["name"] == name)
    shape, tokens = fit.shape_of("Qwen/Qwen2.5-VL-3B-Instruct"), 2 * row["tokens_a_row"]
    parts = fit.needs(shape, tokens, 16, four_bit, True, code, 10 if code == "unsloth" else 16, patches=2 * 4 * 46 * 23)
    assert sum(parts.values()) / 1e9 == pytest.approx(row["peak_gb"], rel=0.05)


def test_formula_against_bench_memory():
    """bench/memory.py's own results: 7B, 1.5B and 0.5B, the newest of each setting."""
    file = ROOT / "bench/results/memory.json"
    if not file.exists():
        pytest.skip("bench/memory.py has not been run on a GPU yet")
    wrong = {}
    for row in json.loads(file.read_text()):
        if row["shape"] in fit.QWEN:
            settings = row["lora_r"], row["quantization"] == "4bit", row["checkpointing"], row["code"]
            parts = fit.needs(fit.QWEN[row["shape"]], row["micro"] * row["length"], *settings)
            ratio = sum(parts.values()) / 1e9 / row["peak_gb"]
            if abs(ratio - 1) > 0.15:
                wrong[row["shape"], *settings] = round(ratio, 2)
    assert not wrong


PUBLISHED = {  # parameters
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Coder-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_published_shapes(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    shape = fit.shape_of(name)
    parts = fit.needs(shape, 1, 16, False, True)
    assert parts["weights"] == pytest.approx(2 * PUBLISHED[name], rel=0.001 if "VL" in name else 1e-12)
    assert ("encoder" in shape) == ("VL" in name)


def test_config_json_is_enough_and_stands_before_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    folder = tmp_path / "me" / "Qwen2___5-7B"
    folder.mkdir(parents=True)
    config = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100)
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2}))
    shape = fit.shape_of("me/Qwen2.5-7B")
    assert (shape["hidden"], shape["kv_heads"], shape["tied"], shape["bytes"]) == (64, 2, False, 0)
    # Embedding, lm_head; a layer: q, o, k, v, MLP, three biases, two norms; the last norm.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 64 + 2 * 32 + 2 * 64
    assert fit.needs(shape, 1, 16, False, True)["weights"] == 2 * (2 * 100 * 64 + 2 * layer + 64)
    with pytest.raises(SystemExit, match="its config.json is not here, nor is it a Qwen2.5"):
        fit.shape_of("me/other-model")


def said(capsys, config=None, length=("max_length", 1024), **own):
    """The table of `estimate` by card: (fits, GB, the sum of its columns, what is said)."""
    defaults = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4, gradient_checkpointing=True)
    settings = dict(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto", lora_r=16, auto=False) | own
    fit.estimate(SimpleNamespace(**(config or defaults) | settings | {length[0]: length[1]}), length[0])
    lines = capsys.readouterr().out.splitlines()[5:]
    cells = [re.fullmatch(r" *(\d+)  (yes|no) +([\d.]+) ([ \d.]+)   (\d+-bit.*)", line).groups() for line in lines]
    return {
        int(card): (fits == "yes", float(gb), sum(map(float, parts.split())), text)
        for card, fits, gb, parts, text in cells
    }


def flags_of(text):
    """The flags that a line advises, as fields."""
    flags = re.findall(r"--(\w+) (\S+)", text)
    return {name: {"true": True}.get(value, int(value) if value.isdigit() else value) for name, value in flags}


@pytest.mark.parametrize(
    "own", [dict(), dict(quantization="none"), dict(auto=True), dict(auto=True, model="Qwen2.5-14B")]
)
@pytest.mark.parametrize("length", [1024, 16_384])
def test_what_estimate_advises_does_fit(monkeypatch, tmp_path, capsys, own, length):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    config = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, gradient_checkpointing=False)
    table = said(capsys, config, length=("max_length", length), **own)
    assert tuple(table) == fit.CARDS
    for card, (fits, gb, parts, text) in table.items():
        assert gb == pytest.approx(parts, abs=0.4)  # of rounded numbers
        assert fits == (gb < fit.FIT * card)
        if not fits and "smaller --model" not in text:
            new = flags_of(text)
            assert new, text
            assert new.get("per_device_train_batch_size", 4) * new.get("gradient_accumulation_steps", 2) == 8
            longest = new.pop("max_length", length)
            changed = own | {"quantization": new.pop("quantization", own.get("quantization", "auto"))}
            assert said(capsys, config | new, length=("max_length", longest), **changed)[card][0]
    assert table[80][0] or length > 1024
    assert not table[12][0] or own.get("auto")


def test_estimate_leaves_auto_its_choice(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    table = said(capsys, auto=True)
    assert table[12][3] == "4-bit, checkpointing, 8 rows at once"
    assert table[80][3] == "16-bit, no checkpointing, 8 rows at once"
    given = said(capsys, auto=True, given=["per_device_train_batch_size"])
    assert given[80][3] == "16-bit, no checkpointing, 2 rows at once"
    assert "take a smaller --model" in said(capsys, auto=True, model="Qwen/Qwen2.5-72B-Instruct")[24][3]


def test_estimate_counts_the_cards_that_accelerate_starts(monkeypatch, tmp_path, capsys):
    """As `tune` does: --auto splits the step's rows over them, FSDP the weights; settings by hand count for each."""
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    alone = said(capsys, auto=True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    ddp = said(capsys, auto=True)
    assert alone[80][3].endswith("8 rows at once") and ddp[80][3].endswith("2 rows at once")
    assert ddp[80][1] < alone[80][1]
    assert said(capsys, auto=False)[80][3] == "16-bit, checkpointing, 2 rows at once"  # for each GPU, as TRL counts
    assert said(capsys, auto=True, rows_per_step=64)[80][3].endswith("16 rows at once")
    with pytest.raises(SystemExit, match="6 rows per step cannot be split over 4 GPUs"):
        said(capsys, auto=True, rows_per_step=6)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    large = dict(auto=True, model="Qwen/Qwen2.5-32B-Instruct")
    sharded = said(capsys, **large)
    fit.estimate(SimpleNamespace(model="Qwen/Qwen2.5-7B", quantization="auto", lora_r=16, auto=True, max_length=1024,
                                 per_device_train_batch_size=2, gradient_accumulation_steps=4,
                                 gradient_checkpointing=True), "max_length")  # fmt: skip
    assert "each of 4 GPUs (FSDP)" in capsys.readouterr().out
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert sharded[24][0] and sharded[24][3].startswith("16-bit") and not said(capsys, **large)[24][3].startswith("16")


def test_the_plan_of_auto_counts_the_cards(monkeypatch):
    """`tune` on 2 GPUs of 80 GB: 64 rows per step are 32 on each, and FSDP halves the weights that each holds."""
    import torch

    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fit.device, "card_bytes", lambda: 80 * 10**9)
    monkeypatch.setattr(fit.device, "varlen_kernel", lambda dtype=None: None)
    monkeypatch.setattr(fit.tokens, "lengths", lambda dataset: [100] * 64)

    def choose(path, lengths, rows, r, total, fixed, shards=1, patches=()):
        asked.update(rows=rows, shards=shards)
        return False, False, rows, 1e9

    monkeypatch.setattr(fit, "choose", choose)
    settings = dict(per_device_train_batch_size=4, gradient_accumulation_steps=16, gradient_checkpointing=True)
    for sharded, shards in ((None, 1), ("true", 2)):
        config = SimpleNamespace(**settings, world_size=2, use_cpu=False, use_liger_kernel=False, bf16=True, fp16=False)
        args = SimpleNamespace(
            auto=True, rows_per_step=None, given=[], quantization="auto", packing=False, lora_r=16, backend="hf",
            fused_lora=False,
        )  # fmt: skip
        if sharded:
            monkeypatch.setenv("ACCELERATE_USE_FSDP", sharded)
        fit.tune(config, args, Path("m"), None)
        assert asked == {"rows": 32, "shards": shards}
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size == 64


@pytest.mark.parametrize(
    "script, first",
    [
        ("medical/train.py", "--max_length 1024"),
        ("r1_grpo/train.py", "--max_completion_length 512"),
        ("vl_insurance/train.py", "--max_pixels 802816"),
        ("rlhf_ppo/train.py", "--max_new_tokens 256"),
    ],
)
def test_estimate_of_a_recipe_needs_no_model_data_or_gpu(script, first, tmp_path):
    for name in ("course.yaml", "") if script == "medical/train.py" else ("",):
        command = [sys.executable, ROOT / script, "--estimate"]
        command += ["--config", ROOT / "medical" / name] if name else []
        environment = os.environ | dict(MODELS_DIR=str(tmp_path), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"each row as long as {first if not name else '--max_length 2048'} allows" in done.stdout
        table = itertools.takewhile(str.strip, done.stdout.splitlines()[5:])
        assert [line.split()[0] for line in table] == [str(card) for card in fit.CARDS]
        assert ("code: unsloth" in done.stdout) == bool(name)
    assert not any(tmp_path.iterdir())  # neither outputs nor downloads


def test_bench_table_compares_measured_with_estimated(tmp_path):
    row = dict(shape="7B", quantization="none", checkpointing=True, code="fast", micro=16, length=512, lora_r=16,
               peak_gb=19.0, before_training_gb=15.4, loading_gb=15.3)  # fmt: skip
    (tmp_path / "memory.json").write_text(json.dumps([row | {"peak_gb": 1.0}, row]))
    command = [sys.executable, ROOT / "bench/memory.py", "--table", "--out", tmp_path / "memory.json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[2:] == ["| 7B | 16-bit | yes | fast | 8,192 | 19.00 | 19.06 | 1.00 | 15.40 | 15.30 |"]
