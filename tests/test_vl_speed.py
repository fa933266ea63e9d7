"""The fast path of vl_insurance (fast.py) against TRL's collator and transformers' own code: pictures, positions, loss, gradients."""

import importlib
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "vl_insurance"
NAMES = ("gauges", "fields", "pictures", "prompt", "sheet", "data", "digits", "render", "lessons", "windows", "fast", "model",
         "answers", "miniature", "train")  # fmt: skip
CAP = 20 * 784
SIZES = ((336, 168), (84, 56), (170, 130), (60, 200))  # width, height: cut down, as they are, and enlarged


@pytest.fixture(scope="module")
def vl():
    kept = {name: sys.modules.pop(name, None) for name in NAMES}
    sys.path.insert(0, str(TASK))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(TASK))
        for name, module in kept.items():
            sys.modules.pop(name, None)
            if module:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def processor(vl):
    return vl.model.load_processor(TASK / "miniature", CAP)


@pytest.fixture(scope="module")
def dataset(vl, processor, tmp_path_factory):
    """Four rows with pictures of four sizes and answers of different lengths."""
    folder, rows = tmp_path_factory.mktemp("photos"), []
    for i, size in enumerate(SIZES):
        image = vl.render.dashboard(random.Random(i))[0].resize(size)
        image.save(folder / f"{i}.png")
        rows.append(
            dict(
                id=i,
                image=str(folder / f"{i}.png"),
                prompt="里程？" * (i + 1),
                response=f"里程 {10**i}" * (4 - i),
                size=size,
                sha256=f"{i:064d}",
            )  # fmt: skip
        )
    return vl.prompt.tokenize(rows, processor, 999, "rows")


def build(vl, processor, checkpointing=False, **flags):
    """A tiny random Qwen2.5-VL with windows and LoRA of which no part is 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sizes = dict(hidden_size=64, intermediate_size=96)
    image, video = processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    config = Qwen2_5_VLConfig(
        text_config=sizes | dict(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(processor.tokenizer),
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        ),
        vision_config=sizes | dict(depth=3, num_heads=4, out_hidden_size=64, fullatt_block_indexes=[1], window_size=56),
        image_token_id=image, video_token_id=video, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(2)
    model = Qwen2_5_VLForConditionalGeneration(config)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=vl.train.lora_targets(vl.train.Args(**flags)),
        bias="none",
    )
    model = get_peft_model(model, lora).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()  # as TRL does
    return model


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def plain(vl, processor, dataset):
    """What TRL's collator and transformers' code, untouched, make of the four rows: loss and gradients."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    rows = vl.prompt.with_pictures(dataset, "hf")
    return loss_and_gradients(build(vl, processor), collate([rows[i] for i in range(len(SIZES))]))


def ours(vl, processor, fused=True, checkpointing=False, **flags):
    model = build(vl, processor, checkpointing, **flags)
    vl.windows.attend_at_once(model.get_base_model())
    vl.fast.see_bytes(model.get_base_model())
    vl.fast.attend_by_row(model)
    if fused:
        vl.fast.fuse(model)
    return model


def packed(vl, model, dataset, which=(0, 1, 2, 3)):
    rows = vl.fast.with_pictures(dataset, CAP)
    return vl.fast.collator(model.config)([rows[i] for i in which])


def test_pictures_are_cut_as_qwens_processor_does(vl, processor, dataset):
    """Bytes, turned into numbers by the encoder's first layer, are the processor's numbers to the last bit."""
    import torch

    rows = vl.fast.with_pictures(dataset, CAP)
    images = [vl.pictures.load_image(row) for row in dataset["image"]]
    theirs = processor.image_processor(images=images, return_tensors="pt")
    assert [list(rows[i]["grid"]) for i in range(4)] == theirs["image_grid_thw"].tolist()
    cells = torch.cat([rows[i]["cells"] for i in range(4)])
    assert cells.dtype == torch.uint8 and cells.shape[1] == 588

    class First:  # gives what it is given
        def forward(self, cells):
            return cells

    first = First()
    vl.fast.see_bytes(SimpleNamespace(model=SimpleNamespace(visual=SimpleNamespace(patch_embed=first))))
    assert torch.equal(first.forward(theirs["pixel_values"]), theirs["pixel_values"])
    torch.testing.assert_close(first.forward(cells), theirs["pixel_values"], rtol=0, atol=1e-6)


def test_positions_are_qwens(vl, processor, dataset):
    import torch

    model = build(vl, processor).get_base_model().model
    rows = vl.fast.with_pictures(dataset, CAP)
    for row in (rows[i] for i in range(4)):
        ids = torch.tensor([row["input_ids"]])
        kinds = (ids == processor.image_token_id).int()
        theirs, _ = model.get_rope_index(ids, kinds, image_grid_thw=torch.tensor([row["grid"]]))
        assert torch.equal(vl.fast.places(row["input_ids"], processor.image_token_id, row["grid"]), theirs[:, 0])


@pytest.mark.parametrize("fused, checkpointing", [(False, False), (True, False), (True, True)])
def test_loss_and_gradients_are_those_of_padded_rows(vl, processor, dataset, plain, fused, checkpointing):
    import torch

    model = ours(vl, processor, fused, checkpointing)
    batch = packed(vl, model, dataset)
    assert batch["input_ids"].shape == (1, sum(map(len, dataset["input_ids"])))
    loss, gradients = loss_and_gradients(model, batch)
    assert loss == pytest.approx(plain[0], rel=1e-5)
    assert gradients.keys() == plain[1].keys() and len(gradients) == 2 * (2 * 7 + 3 * 5)
    for name, theirs in plain[1].items():
        assert theirs.abs().max() > 0
        torch.testing.assert_close(gradients[name], theirs, rtol=1e-3, atol=1e-6 + 1e-4 * float(theirs.abs().max()))


def test_rows_do_not_see_each_other(vl, processor, dataset):
    """Row 0's logits with another row after it and before it."""
    import torch

    model, length = ours(vl, processor).eval(), len(dataset["input_ids"][0])
    with torch.no_grad():
        made = [model(**packed(vl, model, dataset, which)).logits[0] for which in ([0], [0, 3], [2, 0])]
    torch.testing.assert_close(made[1][:length], made[0])
    torch.testing.assert_close(made[2][-length:], made[0])


def test_an_encoder_without_adapters_has_no_backward(vl, processor, dataset):
    """The language model's gradients are the same, and nothing of the encoder is kept for them."""
    import torch

    made, seen = [], []
    for checkpointing in (False, True):
        model = ours(vl, processor, True, checkpointing, finetune_vision_layers=False)
        model.get_base_model().model.visual.register_forward_hook(lambda *given: seen.append(given[-1].pooler_output))
        made.append(loss_and_gradients(model, packed(vl, model, dataset))[1])
        assert not seen.pop()[0].requires_grad
    assert len(made[0]) == 2 * 2 * 7 and all(each.abs().max() > 0 for each in made[0].values())
    for name in made[0]:
        torch.testing.assert_close(made[1][name], made[0][name])


def test_a_settled_model_is_not_walked_through_at_each_step(vl, processor, dataset, monkeypatch):
    """What a trainer does with it between two steps looks into none of its modules, and comes to the same."""
    from torch import nn

    model = ours(vl, processor)
    batch, there = packed(vl, model, dataset), list(model.parameters())
    norm = nn.utils.get_total_norm([each for each in loss_and_gradients(model, batch)[1].values()])
    model.get_base_model().eval()  # as from_pretrained leaves it, below PEFT's shell
    assert model.training
    vl.fast.settle(model)
    assert all(each.training for each in model.modules())
    count = model.num_parameters(exclude_embeddings=True)
    model.eval()
    assert not any(each.training for each in model.modules())
    model.train()
    assert all(each.training for each in model.modules())
    with monkeypatch.context() as none:
        for walk in ("named_modules", "children", "named_children"):
            none.setattr(nn.Module, walk, lambda *a, **k: pytest.fail("walked"))
        assert model.train() is model and model.num_parameters(exclude_embeddings=True) == count > 0
        assert all(one is two for one, two in zip(model.parameters(), there, strict=True))
        assert nn.utils.clip_grad_norm_(model.parameters(), 1.0) == norm > 0
        model.zero_grad()
    assert all(each.grad is None for each in there)
    monkeypatch.setattr(vl.fast.device, "sharded", lambda: True)
    whole = build(vl, processor)
    vl.fast.settle(whole)
    assert "parameters" not in vars(whole)


def kernel(q, k, v, ends, same, longest, longest_too, scale=None, window_size=(-1, -1)):
    """What torch's varlen_attn computes, in plain torch; q, k, v: (tokens, heads, size)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    assert ends is same and longest == longest_too == int(ends.diff().max()) and ends.dtype == torch.int32
    made = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        parts = (each[start:end].transpose(0, 1) for each in (q, k, v))
        made.append(attention(*parts, scale=scale, is_causal=window_size == (-1, 0), enable_gqa=True).transpose(0, 1))
    return torch.cat(made)


def test_a_kernel_is_told_where_rows_and_windows_end(vl, processor, dataset, plain, monkeypatch):
    from common.speed import packing

    monkeypatch.setattr(vl.windows.device, "varlen_kernel", lambda dtype=None: kernel)
    monkeypatch.setattr(packing, "varlen_kernel", lambda: kernel)
    monkeypatch.setattr(vl.windows, "groups", None)  # nothing is gathered
    model = ours(vl, processor)
    loss, _ = loss_and_gradients(model, packed(vl, model, dataset))
    assert loss == pytest.approx(plain[0], rel=1e-5)


def test_answers_are_given_what_the_processor_makes(vl, processor, dataset):
    """A batch of bytes and of Qwen's processor: ids, kinds of tokens, sizes; padded on the left. And the answers to them."""
    import torch

    images, prompts = [vl.pictures.load_image(path) for path in dataset["image"]], dataset["prompt"]
    bytes_, theirs = (vl.answers.ready(processor, backend, images, prompts) for backend in ("hf", "unsloth"))
    assert bytes_.keys() == theirs.keys() and 0 < theirs["attention_mask"][:, 0].sum() < len(prompts)
    for name in theirs.keys() - {"pixel_values"}:
        assert torch.equal(bytes_[name].long(), theirs[name].long()), name
    assert bytes_["pixel_values"].dtype == torch.uint8
    stock, fast = build(vl, processor), ours(vl, processor)
    said = stock.generate(**theirs, max_new_tokens=8, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    words = processor.tokenizer.batch_decode(said[:, theirs["input_ids"].shape[1] :], skip_special_tokens=True)
    # Batches are padded where answers are written: attention by row makes room and comes back.
    assert vl.answers.generate(fast, processor, images, prompts, max_new_tokens=8) == [text.strip() for text in words]
    parted = vl.answers.generate(fast, processor, dataset["image"], prompts, max_new_tokens=8, batch_size=3)
    assert parted == [text.strip() for text in words] and any(parted)
    assert fast.config._attn_implementation == vl.fast.BY_ROW


def test_auto_counts_the_pictures(vl, monkeypatch, capsys):
    """8 photos of 990 tokens, a 3B, LoRA in the encoder: in one pass on 80 GB; on 24 GB with checkpointing."""
    import torch

    fast, dataset = vl.fast, {"input_ids": [[7] * 990 + [1] * 70] * 40}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fast.device, "varlen_kernel", lambda dtype=None: kernel)
    monkeypatch.setattr(fast.fit.tokens, "lengths", lambda dataset: [1060] * 40)

    def tuned(card, **flags):
        monkeypatch.setattr(fast.fit.device, "card_bytes", lambda: card * 10**9)
        args = vl.train.Args(**{"backend": "hf", **flags})
        args.given = [*flags]
        config = SimpleNamespace(
            per_device_train_batch_size=2, gradient_accumulation_steps=4, gradient_checkpointing=True, world_size=1,
            use_cpu=False, use_liger_kernel=False, dataloader_num_workers=0, per_device_eval_batch_size=2,
            dataloader_persistent_workers=False, bf16=True, fp16=False,
        )  # fmt: skip
        fast.tune(config, args, Path("Qwen/Qwen2.5-VL-3B-Instruct"), dataset, 7)
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 8
        assert args.given == [*flags] and config.use_liger_kernel is False
        return args, config

    args, config = tuned(80)
    assert (args.packing, args.quantization, config.gradient_checkpointing) == (True, "none", False)
    assert config.per_device_train_batch_size == config.per_device_eval_batch_size == 8
    assert config.dataloader_num_workers > 0 and config.dataloader_persistent_workers
    args, config = tuned(24)
    assert (config.gradient_checkpointing, config.per_device_train_batch_size) == (True, 8)
    _, config = tuned(48, finetune_vision_layers=False)  # the encoder keeps nothing
    assert (config.gradient_checkpointing, config.per_device_train_batch_size) == (False, 8)
    args, config = tuned(24, backend="unsloth")
    assert not args.packing and config.dataloader_num_workers == 0
    with pytest.raises(SystemExit, match="--packing: Unsloth"):
        tuned(24, backend="unsloth", packing=True)
    assert "--packing true" in capsys.readouterr().out


@pytest.mark.parametrize("photos, checkpointing, peak", [(8, False, 66.03), (8, True, 13.37), (4, False, 37.23)])
def test_the_formula_against_peaks_of_an_h100(vl, photos, checkpointing, peak):
    """RESULTS.md, "A step on an H100": rows of 1,063 tokens, 990 of them the picture's."""
    fit = vl.fast.fit
    shape = fit.shape_of("Qwen/Qwen2.5-VL-3B-Instruct")
    parts = fit.needs(shape, photos * 1063, 16, False, checkpointing, patches=photos * 4 * 990)
    assert sum(parts.values()) / 1e9 == pytest.approx(peak, rel=0.05)


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains twice")
def test_a_run_end_to_end_has_the_losses_of_a_padded_one(script, tmp_path):
    """train.py with both paths: three steps of 8 photos, then held-out loss and answers."""
    import json

    losses = []
    for on in ("false", "true"):
        script(
            TASK / "train.py", "--demo", "--max_steps", 3, "--logging_steps", 1, "--eval_steps", 3, "--save_strategy", "no",
            "--load_best_model_at_end", "false", "--show_answers", 2, "--eval_rows", 8, "--bf16", "false", "--packing", on,
            "--fused_lora", on, "--loss_type", "chunked_nll", "--output_dir", tmp_path / on, "--dataloader_num_workers", 1,
            "--finetune_vision_layers", "true", "--finetune_mlp_modules", "true",
        )  # fmt: skip
        logs = map(json.loads, (tmp_path / on / "metrics.jsonl").read_text().splitlines())
        losses.append([log.get("loss", log.get("eval_loss")) for log in logs if {"loss", "eval_loss"} & log.keys()])
    assert len(losses[0]) >= 4 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
