"""Packing and fused LoRA compute what padding and PEFT compute; --auto keeps its hands off the learning.

The varlen kernel has no CPU version: here a loop over the rows stands in for it, so that everything around it is tested,
and transformers' own masks are tested as they are. tests/gpu_equality.py compares the kernel itself.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common import device
from common.cli import SftArgs
from common.models import BY_ROW, inference
from common.speed import fit, lora, packing

ROWS = [
    {"input_ids": [5, 9, 11, 300, 7, 2], "labels": [-100, -100, 11, 300, 7, 2]},
    {"input_ids": [40, 41, 42, 2], "labels": [40, 41, 42, 2]},
    {"input_ids": list(range(100, 117)), "labels": [-100] * 4 + list(range(104, 117))},
]


def rows_one_by_one(q, k, v, starts, _, longest, __, scale=None, window_size=None):
    """What varlen_attn computes, a row at a time. q: (tokens, heads, dim); k, v: (tokens, fewer heads, dim)."""
    assert window_size == (-1, 0) and longest == max(starts.diff())
    parts = []
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        one = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=True)
        )
    return torch.cat([part[0].transpose(0, 1) for part in parts])


def lora_model(tiny_model, fused=False, attention=None, alpha=32, seed=0):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # B starts at zero, which would hide a wrong scale
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.05
    if fused:
        assert lora.fuse(model) == 14
        mlp = model.base_model.model.model.layers[0].mlp
        assert mlp.forward.func is lora._mlp_forward
    if attention:
        packing.attend_by_row(model, "hf")
        assert model.config._attn_implementation == attention
    return model


def losses_and_gradients(model, batches):
    """Summed loss and the gradient of every adapter over some batches."""
    total = 0
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[:, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-9)
    assert one[1].keys() == other[1].keys() and len(one[1]) == 28
    for name, gradient in one[1].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.fixture
def tokenizer(tiny_model):
    from common.models import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(packing, "varlen_kernel", lambda dtype=None: rows_one_by_one)


@pytest.mark.parametrize("way", ["masks", "kernel"])
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_by_themselves(tiny_model, tokenizer, way, request):
    if way == "kernel":
        request.getfixturevalue("kernel")
    packed = lora_model(tiny_model, attention=BY_ROW if way == "kernel" else None)
    batch = packing.collator(tokenizer, True, "hf")(ROWS)
    assert batch["input_ids"].shape == (1, 27) and batch["cu_seq_lens_q"].tolist() == [0, 6, 10, 27]
    one_by_one = [{name: torch.tensor([row[name]]) for name in row} for row in ROWS]
    same(losses_and_gradients(packed, [batch]), losses_and_gradients(lora_model(tiny_model), one_by_one))


@pytest.mark.parametrize("dtype, by_row", [("float32", False), ("bfloat16", True)])
def test_packing_in_32_bits_goes_by_masks_and_says_so(tiny_model, tokenizer, monkeypatch, capsys, dtype, by_row):
    """The kernel refuses float32, with which every trainer's --packing true came to a traceback on a GPU."""
    from transformers import AutoModelForCausalLM

    def flash(q, *more, **how):
        if q.dtype.itemsize != 2:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return rows_one_by_one(q, *more, **how)

    monkeypatch.setattr(packing, "varlen_kernel", lambda kind=None: flash if not kind or kind.itemsize == 2 else None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    made = []
    for end_to_end in (False, True):
        if end_to_end:
            packing.attend_by_row(model, "hf")
        batch = dict(packing.collator(tokenizer, end_to_end, "hf")(ROWS))
        made.append(model(**batch, use_cache=False).loss.item())
    assert made[1] == pytest.approx(made[0], rel=1e-4 if dtype == "float32" else 0.02)
    assert (model.config._attn_implementation == BY_ROW) is by_row
    assert ("masks keep the rows apart" in capsys.readouterr().out) is not by_row


def test_the_kernel_takes_16_bits_of_a_card_from_ampere_on(monkeypatch):
    pytest.importorskip("torch.nn.attention.varlen")
    found = {}
    for capability in ((7, 5), (9, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)  # noqa: B023
        for dtype in (None, torch.bfloat16, torch.float16, torch.float32):
            found[capability, dtype] = device.varlen_kernel.__wrapped__(dtype) is not None
    assert [key for key, there in found.items() if there] == [
        ((9, 0), dtype) for dtype in (None, torch.bfloat16, torch.float16)
    ]


def test_padded_and_packed_batches_agree(tiny_model, tokenizer):
    packed, padded = (packing.collator(tokenizer, end_to_end, "hf")(ROWS) for end_to_end in (True, False))
    same(losses_and_gradients(lora_model(tiny_model), [packed]), losses_and_gradients(lora_model(tiny_model), [padded]))


@pytest.mark.parametrize("way", ["masks", "kernel"])
def test_no_row_sees_another(tiny_model, tokenizer, way, request):
    if way == "kernel":
        request.getfixturevalue("kernel")
    model = lora_model(tiny_model, attention=BY_ROW if way == "kernel" else None)
    changed = [ROWS[0], {"input_ids": [70, 71, 72, 73], "labels": [70, 71, 72, 73]}, ROWS[2]]
    outputs = []
    for rows in (ROWS, changed):
        batch = packing.collator(tokenizer, True, "hf")(rows)
        batch.pop("labels")
        outputs.append(model(**batch, use_cache=False).logits[0])
    old, new = outputs
    assert (
        torch.equal(old[:6], new[:6]) and torch.equal(old[10:], new[10:]) and not torch.allclose(old[6:10], new[6:10])
    )


def test_attention_by_row_refuses_a_batch_that_does_not_say_where_rows_start(tiny_model, kernel):
    model = lora_model(tiny_model, attention=BY_ROW)
    with pytest.raises(ValueError, match="where each row starts"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    with inference(model, "hf"):  # as generation and evaluation do
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert model.config._attn_implementation == BY_ROW


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_lora_is_lora(tiny_model, tokenizer, checkpointing):
    """alpha 32 over rank 4: a forgotten scale would show."""
    results = []
    for fused in (False, True):
        model = lora_model(tiny_model, fused)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            model.train()
        results.append(losses_and_gradients(model, [packing.collator(tokenizer, False, "hf")(ROWS)]))
    same(*results)


def test_fused_lora_steps_aside_where_peft_does_more(tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for more in (dict(lora_dropout=0.1), dict(use_dora=True), dict(lora_bias=True)):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        assert lora.fuse(get_peft_model(model, LoraConfig(target_modules=["q_proj"], **more))) == 0, more
    model = lora_model(tiny_model, fused=True)
    ids = torch.tensor([[5, 6, 7]])
    tuned = model(input_ids=ids).logits
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    assert not torch.allclose(tuned, base)
    torch.testing.assert_close(model.unload()(input_ids=ids).logits, base)


def test_fused_lora_with_bias_and_frozen_input(tiny_model):
    """Qwen's q, k and v have a bias; the first layer's input needs no gradient."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    torch.manual_seed(0)
    layer = Linear(torch.nn.Linear(8, 6), "default", LoraConfig(), r=2, lora_alpha=4)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, 5, 8)
    expected = layer(x)
    holder = torch.nn.Module()
    holder.layer = layer
    assert lora.fuse(holder) == 1
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.lora_A["default"].weight.grad.shape == (2, 8)


SHAPES = {  # config.json's numbers and bytes of weights
    "7b": (dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                num_key_value_heads=4, vocab_size=152_064, tie_word_embeddings=False), 15_231_233_024),
    "0.5b": (dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                  num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True), 988_065_536),
}  # fmt: skip


def folder_of(tmp_path, name):
    shape, size = SHAPES[name]
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(size)  # sparse: takes no disk
    return tmp_path


LENGTHS = [120, 150, 200, 260, 330] * 200


@pytest.mark.parametrize("card", [12, 16, 24, 48, 80, 141])
def test_auto_fits_every_card_and_larger_cards_get_faster_settings(tmp_path, card):
    path = folder_of(tmp_path, "7b")
    four_bit, checkpointing, micro, size = fit.choose(path, LENGTHS, 8, 16, card * 1e9, {})
    assert size < card * 1e9 and 8 % micro == 0
    assert four_bit == (card < 20)
    assert checkpointing == (card < 30)
    wide = fit.choose(path, LENGTHS, 64, 16, card * 1e9, {})
    assert wide[3] < card * 1e9 and 64 % wide[2] == 0 and wide[2] >= micro


def test_auto_keeps_what_the_user_fixed_and_says_what_cannot_fit(tmp_path):
    path = folder_of(tmp_path, "7b")
    fixed = dict(four_bit=True, checkpointing=True, micro=2)
    assert fit.choose(path, LENGTHS, 8, 16, 80e9, fixed)[:3] == (True, True, 2)
    assert fit.choose(path, LENGTHS, 8, 16, 6e9, {}) is None
    small = folder_of(tmp_path, "0.5b")
    assert fit.choose(small, LENGTHS, 8, 16, 12e9, {})[:3] == (False, False, 8)


def test_longest_micro_batch_is_not_underrated():
    generator = torch.Generator().manual_seed(0)
    for micro in (1, 2, 8, 64):
        picks = torch.tensor(LENGTHS)[torch.randint(len(LENGTHS), (2000, micro), generator=generator)].sum(1)
        assert picks.max() <= fit.tokens_of(LENGTHS, micro) <= micro * max(LENGTHS)


def tuned(tmp_path, monkeypatch, capsys, given=(), rows=(2, 4), world=1, **own):
    from common import tokens

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79e9, 80e9))
    monkeypatch.setattr(device, "varlen_kernel", lambda dtype=None: rows_one_by_one)
    monkeypatch.setattr(tokens, "lengths", lambda dataset: LENGTHS)
    config = SimpleNamespace(use_cpu=False, world_size=world, fsdp=None, use_liger_kernel=False, loss_type="chunked_nll",
                             learning_rate=2e-4, per_device_train_batch_size=rows[0], gradient_accumulation_steps=rows[1],
                             gradient_checkpointing=True, bf16=True, fp16=False)  # fmt: skip
    args = SimpleNamespace(**vars(SftArgs(backend="hf", **own)), given=list(given))
    fit.tune(config, args, folder_of(tmp_path, "7b"), None)
    return config, args, capsys.readouterr().out


def test_auto_changes_the_split_and_never_the_rows_or_the_learning_rate(tmp_path, monkeypatch, capsys):
    config, args, said = tuned(tmp_path, monkeypatch, capsys)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps, config.learning_rate) == (
        8,
        1,
        2e-4,
    )
    assert (args.quantization, args.packing, config.gradient_checkpointing) == ("none", True, False)
    assert "--auto false --backend hf --quantization none --packing true" in said
    assert "--per_device_train_batch_size 8 --gradient_accumulation_steps 1" in said


def test_auto_shares_a_step_among_the_gpus(tmp_path, monkeypatch, capsys):
    config, *_ = tuned(tmp_path, monkeypatch, capsys, world=2)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * 2 == 8
    with pytest.raises(SystemExit, match="8 rows per step cannot be split over 3 GPUs"):
        tuned(tmp_path, monkeypatch, capsys, world=3)


def test_auto_leaves_the_command_line_alone(tmp_path, monkeypatch, capsys):
    given = ["per_device_train_batch_size", "gradient_checkpointing", "packing"]
    config, args, _ = tuned(tmp_path, monkeypatch, capsys, given, (1, 8), packing=False, quantization="4bit")
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (1, 8)
    assert config.gradient_checkpointing and not args.packing and args.quantization == "4bit"
    config, args, said = tuned(tmp_path, monkeypatch, capsys, auto=False)
    assert config.per_device_train_batch_size == 2 and args.quantization == "auto" and not said


def test_rows_per_step_leave_the_split_to_auto_or_to_the_batch_size(tmp_path, monkeypatch, capsys):
    config, *_ = tuned(tmp_path, monkeypatch, capsys, rows_per_step=64)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64
    assert config.per_device_train_batch_size > 2  # the card's choice
    config, *_ = tuned(tmp_path, monkeypatch, capsys, rows_per_step=64, auto=False)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (2, 32)
    with pytest.raises(SystemExit, match="--rows_per_step 7 is no multiple of 2"):
        tuned(tmp_path, monkeypatch, capsys, rows_per_step=7)


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).resolve().parents[1].glob("*/fast.yaml")), ids=lambda f: f.parent.name
)
def test_what_a_yaml_says_binds_auto(file, tmp_path):
    """fast.yaml fixes rows per step and learning rate and nothing that --auto chooses; what another one gives stays."""
    import yaml

    chosen = {"packing", "quantization", "fused_lora", "gradient_checkpointing", "per_device_train_batch_size"}
    assert not chosen & set(yaml.safe_load(file.read_text("utf-8")))


def test_a_value_in_yaml_is_given(tmp_path, monkeypatch, capsys):
    from common.cli import parse

    (tmp_path / "c.yaml").write_text("packing: false\nper_device_train_batch_size: 1\n")
    args = parse(__file__, {}, {}, SftArgs, "trl:SFTConfig", ["--config", str(tmp_path / "c.yaml")])
    config, args, _ = tuned(tmp_path, monkeypatch, capsys, args.given, (1, 8), packing=args.packing)
    assert args.packing is False and config.per_device_train_batch_size == 1
