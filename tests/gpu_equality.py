"""Does the fast path compute what the slow one computes? On a GPU, in bf16, by relative norm. Exits 1 if not.

    python tests/gpu_equality.py

Every number is compared with a float32 reference; where an ordinary bf16 path exists, the fast one may be at most a
little further from the reference than that one is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.device import decide_backend, varlen_kernel
from common.speed import lora, packing
from common.speed.graph import decode

LENGTHS = [37, 1, 200, 413, 64, 90]
failed = []


def check(what, error, limit):
    bad = not error <= limit  # NaN is bad, too
    print(f"{'FAIL' if bad else 'ok  '} {what}: {error:.2e} (limit {limit:.0e})", flush=True)
    failed.extend([what] if bad else [])


def relative(value, reference):
    return ((value.float() - reference.float()).norm() / reference.float().norm()).item()


def attention(heads, key_heads, dim):
    """The kernel, forward and backward, against attention a row at a time in float32."""
    total = sum(LENGTHS)
    q, k, v = (torch.randn(1, n, total, dim, device="cuda") for n in (heads, key_heads, key_heads))
    low = [each.bfloat16().requires_grad_() for each in (q, k, v)]
    high = [each.detach().float().requires_grad_() for each in low]
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device="cuda")
    out, _ = packing.varlen_attention(
        None, *low, None, scaling=dim**-0.5, cu_seq_lens_q=starts, max_length_q=max(LENGTHS)
    )
    parts = []
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        one = [each[:, :, a:b] for each in high]
        parts.append(torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True))
    reference = torch.cat(parts, 2).transpose(1, 2)
    weight = torch.randn_like(reference)
    (out.float() * weight).sum().backward()
    (reference * weight).sum().backward()
    check(f"attention {heads}/{key_heads} heads of {dim}: output", relative(out, reference), 1e-2)
    for name, a, b in zip("qkv", low, high, strict=True):
        check(f"attention {heads}/{key_heads} heads of {dim}: gradient of {name}", relative(a.grad, b.grad), 1e-2)


def fused_layer(kind):
    """One fused layer against the formula in float32, with the weight that the layer really has."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    if kind == "4-bit":
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Linear4bit
        from peft.tuners.lora.bnb import Linear4bit as Lora4bit

        base = Linear4bit(512, 768, bias=True, compute_dtype=torch.bfloat16, quant_type="nf4")
        base.bias.data = base.bias.data.bfloat16()
        base.cuda()
        layer = Lora4bit(base, "default", LoraConfig(), r=16, lora_alpha=32)
        weight = dequantize_4bit(base.weight, base.weight.quant_state).float()
    else:
        base = torch.nn.Linear(512, 768, device="cuda", dtype=torch.bfloat16)
        layer = Linear(base, "default", LoraConfig(), r=16, lora_alpha=32)
        weight = base.weight.float()
    layer.cuda()
    base.requires_grad_(False)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b, std=0.05)
    holder = torch.nn.ModuleList([layer])
    assert lora.fuse(holder) == 1
    x = torch.randn(3, 100, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    high = [each.detach().float().requires_grad_() for each in (x, a, b)]
    reference = high[0] @ weight.T + base.bias.float() + 2 * (high[0] @ high[1].T) @ high[2].T
    pull = torch.randn_like(reference)
    (y.float() * pull).sum().backward()
    (reference * pull).sum().backward()
    check(f"fused LoRA, {kind}: output", relative(y, reference), 1e-2)
    for name, one, other in zip(("x", "A", "B"), (x, a, b), high, strict=True):
        check(f"fused LoRA, {kind}: gradient of {name}", relative(one.grad, other.grad), 1e-2)


def whole_model():
    """A small Qwen2: packed, fused and with Liger in bf16, and padded in bf16, against one row at a time in float32."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8)
    config = Qwen2Config(vocab_size=4096, num_key_value_heads=2, attn_implementation="sdpa", **shape)
    torch.manual_seed(0)
    state = {name: each.bfloat16() for name, each in Qwen2ForCausalLM(config).state_dict().items()}
    rows = [{"input_ids": torch.randint(4096, (n,)).tolist()} for n in LENGTHS if n > 1]
    rows = [row | {"labels": [-100] * 10 + row["input_ids"][10:]} for row in rows]
    tokens = sum(len(row["labels"]) - 10 for row in rows)

    def run(kind):
        model = Qwen2ForCausalLM(Qwen2Config(**config.to_dict() | {"attn_implementation": "sdpa"}))
        model.load_state_dict(state)
        model = model.cuda().to(torch.float32 if kind == "reference" else torch.bfloat16)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.data = (torch.randn(each.shape) * 0.02).to(each.data)
        if kind == "fast":
            apply_liger_kernel_to_qwen2(model=model.get_base_model(), swiglu=False)
            packing.attend_by_row(model, "hf")
            assert lora.fuse(model) == 28
            batches = [packing.collator(None, True, "hf")(rows)]
        elif kind == "padded":
            width = max(map(len, (row["input_ids"] for row in rows)))
            batches = [{
                "input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]),
                "labels": torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows]),
                "attention_mask": torch.tensor([[1] * len(row["labels"]) + [0] * (width - len(row["labels"])) for row in rows]),
            }]  # fmt: skip
        else:
            batches = [{name: torch.tensor([row[name]]) for name in row} for row in rows]
        model.train()
        loss = 0
        for batch in batches:
            batch = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=kind != "reference"):
                loss = loss + model(**batch, use_cache=False, num_items_in_batch=tokens).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.float().flatten() for p in model.parameters() if p.requires_grad])

    loss, gradient = run("reference")
    ordinary, quick = run("padded"), run("fast")
    check(
        "model: loss, packed + fused + Liger",
        abs(quick[0] - loss) / loss,
        max(1e-3, 1.5 * abs(ordinary[0] - loss) / loss),
    )
    usual = relative(ordinary[1], gradient)
    print(f"     (the ordinary padded bf16 path is {usual:.2e} away from float32 in its gradients)")
    check("model: gradients, packed + fused + Liger", relative(quick[1], gradient), 1.3 * usual)


def isolation():
    """A row's output does not change by a bit when another row of the batch does."""
    q = torch.randn(1, 8, sum(LENGTHS), 64, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, 2, sum(LENGTHS), 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    starts = torch.tensor([0, *ends], dtype=torch.int32, device="cuda")
    more = dict(scaling=0.125, cu_seq_lens_q=starts, max_length_q=max(LENGTHS))
    before, _ = packing.varlen_attention(None, q, k, v, None, **more)
    k[:, :, ends[1] : ends[2]] += 1
    v[:, :, ends[1] : ends[2]] += 1
    after, _ = packing.varlen_attention(None, q, k, v, None, **more)
    others = torch.ones(sum(LENGTHS), dtype=torch.bool)
    others[ends[1] : ends[2]] = False
    check("isolation: the other rows' outputs", (before[:, others] != after[:, others]).float().mean().item(), 0)
    moved = (before[:, ~others] != after[:, ~others]).float().mean().item()
    check("isolation: the changed row's outputs that stayed the same", 1 - moved, 0.1)


def decoding():
    """The recorded step against transformers' generate, its draws against the softmax, and new weights seen by it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8)
    config = Qwen2Config(vocab_size=512, num_key_value_heads=2, **shape)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).cuda()
    model.lm_head.weight.data *= 10  # or every token is as likely as another
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).eval()
    prompts = [torch.randint(2, 512, (n,)).tolist() for n in (5, 40, 17, 3)]

    def differing():
        ours, count = decode(model, prompts, 48, 0, [1], 0), 0
        for prompt, row in zip(prompts, ours, strict=True):
            ids = torch.tensor([prompt], device="cuda")
            options = dict(max_new_tokens=48, do_sample=False, eos_token_id=1, pad_token_id=0)
            theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :]
            count += row != theirs.tolist()
        return ours, count / len(prompts)

    first, share = differing()
    check("decoding: greedy rows that differ from generate's", share, 0)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            each.data.normal_(std=0.5)  # in place, as an optimizer does it
    second, share = differing()
    check("decoding: the same after an update of the adapters", share, 0)
    check("decoding: rows that the update left alone", sum(a == b for a, b in zip(first, second, strict=True)) / 4, 0.5)
    with model.disable_adapter():
        third, share = differing()
    check("decoding: rows without adapters that differ from the first ones", float(first != third) + share, 0)

    many = [prompts[0]] * 4096
    torch.manual_seed(3)
    drawn = decode(model, many, 2, 0.7, [1], 0)
    counts = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=512) / 4096
    wanted = (model(torch.tensor([prompts[0]], device="cuda")).logits[0, -1].float() / 0.7).softmax(-1).cpu()
    check("decoding: distance of 4096 draws from the softmax", (counts - wanted).abs().sum().item() / 2, 0.15)
    torch.manual_seed(3)
    check(
        "decoding: draws of a replay with the same seed that differ",
        float(drawn != decode(model, many, 2, 0.7, [1], 0)),
        0,
    )
    check("decoding: draws with another seed that are the same", float(drawn == decode(model, many, 2, 0.7, [1], 0)), 0)


def padding():
    """Left-padded batches, forward and backward, where free memory holds NaN: whoever reads what nobody wrote shows up.

    Rows of padding see nothing; what attention makes of them must not reach a gradient.
    """
    from peft import LoraConfig, get_peft_model
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_key_value_heads=3, **shape)).cuda().bfloat16()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM"), "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    ways = {
        "as torch chooses": [
            each
            for name, each in SDPBackend.__members__.items()
            if name in "FLASH_ATTENTION EFFICIENT_ATTENTION CUDNN_ATTENTION MATH"
        ],
        "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    }
    ways |= {"cuDNN": [SDPBackend.CUDNN_ATTENTION], "math": [SDPBackend.MATH]}
    for way, backends in ways.items():
        bad = 0
        for _ in range(20):
            width = int(torch.randint(100, 400, ()))
            real = torch.randint(20, width, (16,))
            real[0] = width
            ids = torch.randint(4096, (16, width), device="cuda")
            mask = (torch.arange(width)[None] >= width - real[:, None]).long().cuda()
            labels = ids.masked_fill(mask == 0, -100)
            free = torch.cuda.mem_get_info()[0] - 2 * 2**30
            poison = torch.full((min(free, 16 * 2**30) // 4,), float("nan"), device="cuda")
            del poison
            try:
                with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(backends):
                    loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
                    loss.backward()
            except RuntimeError as error:
                print(f"     ({way}: {str(error).splitlines()[0][:90]})")
                break
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            bad += not (loss.isfinite() and norm.isfinite())
            model.zero_grad()
        check(f"left-padded batches with a gradient that is not finite, attention: {way}", bad / 20, 0)


def low_scores():
    """Masked attention whose scores are all about -120, at every length around a multiple of 64: gradients stay finite.

    With cuDNN's kernel they do not at 64, 192, 320, ... (pytorch/pytorch#196678), which is why decide_backend turns it off.
    Says, too, whether that is still so: where it is not, the line there can go.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def broken(lengths, backends):
        found = []
        for length in lengths:
            q, k, v = (0.1 * torch.randn(2, 3, length, 64, device="cuda") for _ in range(3))
            q[..., 0], k[..., 0] = 1.0, -120 * 64**0.5
            q, k, v = (each.bfloat16().requires_grad_() for each in (q, k, v))
            mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
            with sdpa_kernel(backends):
                scaled_dot_product_attention(q, k, v, attn_mask=mask).square().sum().backward()
            found += [length] if not all(each.grad.isfinite().all() for each in (q, k, v)) else []
        return found

    lengths = [n + d for n in range(64, 705, 64) for d in (-1, 0, 1)]
    try:
        print(f"     (cuDNN's attention is not finite at lengths {broken(lengths, [SDPBackend.CUDNN_ATTENTION])})")
    except RuntimeError as error:
        print(f"     (cuDNN: {str(error).splitlines()[0][:90]})")
    decide_backend("hf")
    allowed = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    allowed += [SDPBackend.CUDNN_ATTENTION] if torch.backends.cuda.cudnn_sdp_enabled() else []
    check("lengths at which masked attention with low scores has no finite gradient", len(broken(lengths, allowed)), 0)


if __name__ == "__main__":
    if varlen_kernel() is None:
        raise SystemExit("needs an NVIDIA GPU from Ampere on and torch 2.11 or newer")
    torch.manual_seed(0)
    attention(28, 4, 128)
    attention(8, 8, 64)
    attention(14, 2, 64)
    for kind in ("16-bit", "4-bit"):
        fused_layer(kind)
    isolation()
    whole_model()
    decoding()
    padding()
    low_scores()
    raise SystemExit(f"{len(failed)} failed: {failed}" if failed else 0)
