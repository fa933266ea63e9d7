"""Why LoRA works: fine-tune a small model in full, look at what changed, and keep only r directions of it.

    dW = W_tuned - W_base,    dW_r = the best rank-r approximation of dW (Eckart-Young)

Every weight of SmolLM2-135M is trained for some steps on short harbour reports, made here by a small grammar; then the
dW of the 210 projection matrices are cut to rank r and the loss is measured on reports that were not trained on. Next
to it LoRA of rank r, trained directly with the same batches. Two controls: embeddings and norms alone (r = 0), and what
the cut left over (dW - dW_r). Departs from the folklore: dW of a full fine-tune is not a low-rank matrix.

Two minutes, no GPU:    python lora_lowrank.py
A closer look:          python lora_lowrank.py --steps 48 --lora_ranks 1 4 16 64
"""

import json
import os
import random
import time
from dataclasses import dataclass

from common import hub
from common.cli import arg, parse
from common.device import has_bf16
from common.hub import resolve_model
from common.paths import DEMO_MODEL, output_dir
from plots import draw_lora

DEFAULTS = dict(
    model=DEMO_MODEL,
    steps=16,  # the loss has fallen most of its way by then
    batch_size=4,  # reports per step
    learning_rate=3e-4,  # AdamW, every weight; the best of 1e-4, 2e-4, 5e-4, 1e-3 were 2e-4 and 5e-4
    lora_learning_rate=1e-2,  # the best of 2e-3, 5e-3, 1e-2, 2e-2 at rank 16: only the small matrices move
    seed=0,  # of everything drawn at random: the reports, and where LoRA begins
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HELD_OUT = 16  # reports, about 900 tokens


@dataclass
class Args:
    ranks: list[int] = arg([1, 2, 4, 8, 16, 32, 64, 128], "that dW is cut to")
    lora_ranks: list[int] = arg([1, 4, 16], "that LoRA is trained with")


# -- the texts


def reports(seed, n):
    """n different short reports of one form, with rules a model can learn: the advice follows from wind and sea."""
    rng, made = random.Random(seed), {}
    while len(made) < n:
        wind, force = rng.choice(("north", "north-east", "east", "south", "south-west", "west")), rng.randint(1, 9)
        sea = ("smooth", "slight", "rough", "high")[min(3, (force - 1) // 2)]
        boat = rng.choice(("Marigold", "Petrel", "Old Anna", "Silver Eel", "Bluebell", "Cormorant", "Dora", "Lantern"))
        seen = rng.choice(
            ("two herons", "a grey seal", "many gulls", "a drifting barrel", "nothing", "three porpoises")
        )
        catch = rng.choice(("herring", "mackerel", "cod", "crab", "whiting", "sole"))
        boxes = rng.randint(2, 40)
        advice = (
            "all boats stay in port" if force >= 7 else "small boats stay in port" if force >= 5 else "good to sail"
        )
        price = "low" if boxes > 25 else "fair" if boxes > 10 else "dear"
        text = (
            f"Harbour report. Wind {wind}, force {force}; sea {sea}. The {boat} landed {boxes} boxes of {catch}, "
            f"price {price}. Seen: {seen}. Advice: {advice}."
        )
        made[text] = None
    return list(made)


def batches_of(texts, tokenizer, size):
    """Padded batches of (ids, mask, labels), each (B, L); the end token is learnt, padding is not."""
    import torch

    made = []
    for at in range(0, len(texts), size):
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts[at : at + size]]
        length = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
        ids = torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in ids])  # the mask hides it
        made.append((ids, mask, ids.masked_fill(mask == 0, -100)))
    return made


# -- low rank


def factors(delta):
    """SVD of one matrix (m, n) in float32: U (m, k), s (k,), Vh (k, n), k = min(m, n)."""
    import torch

    return torch.linalg.svd(delta.float(), full_matrices=False)


def cut(svd, rank):
    """The best approximation of rank `rank` in every norm that only singular values decide (Eckart-Young)."""
    u, s, vh = svd
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def product_singular_values(B, A):
    """Singular values of B A, B (m, r), A (r, n), without forming it: two thin QR, one r x r SVD."""
    import torch

    rb, ra = torch.linalg.qr(B.double()).R, torch.linalg.qr(A.double().T).R
    return torch.linalg.svdvals(rb @ ra.T)


def energy(spectra):
    """Share of the squared sum that the first r singular values hold, over all matrices together: (k,) by r."""
    import torch

    longest = max(map(len, spectra))
    squares = sum(torch.nn.functional.pad(s.double() ** 2, (0, longest - len(s))) for s in spectra)
    return squares.cumsum(0) / squares.sum()


def effective_rank(s):
    """exp of the entropy of the squared singular values' shares: k for k equal ones, 1 for a single one."""
    p = s.double() ** 2
    p = p[p > 0] / p.sum()
    return float((-(p * p.log()).sum()).exp())


# -- training and measuring


def autocast():
    """Products in bfloat16 where the CPU has it, three times as fast. Weights stay float32: dW is small beside W."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=has_bf16())


def heldout(model, batches):
    """Mean loss of a token over all batches."""
    import torch

    total = count = 0
    model.eval()
    with torch.no_grad(), autocast():
        for ids, mask, labels in batches:
            n = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, attention_mask=mask, labels=labels).loss) * n
            count += n
    return total / count


def train(model, batches, optimizer, steps):
    """`steps` updates, one batch each; the learning rate falls linearly. Returns the losses."""
    model.train()
    rate, losses = optimizer.param_groups[0]["lr"], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        ids, mask, labels = batches[step % len(batches)]
        with autocast():
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def load(path):
    """A fresh base model in float32: dW is small beside W."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return hub.load(AutoModelForCausalLM, path, dtype=torch.float32)


def study_full(args, path, trained, held, ranks):
    """Train every weight, then put cut versions of dW back and measure each: (result, spectra, the matrix shown)."""
    import torch

    model = load(path)
    result = {"base": heldout(model, held), "parameters": sum(p.numel() for p in model.parameters()), "cut": []}
    names = [name for name, _ in model.named_parameters() if name.split(".")[-2] in TARGETS]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.0, fused=True)
    train(model, trained, optimizer, args.steps)
    result["full"] = heldout(model, held)
    deltas = {name: model.get_parameter(name).detach() - before[name] for name in names}
    svds = {name: factors(delta) for name, delta in deltas.items()}
    share = energy([s for _, s, _ in svds.values()])
    result["effective_rank"] = sum(effective_rank(s) for _, s, _ in svds.values()) / len(svds)

    def loss_with(delta_of):
        for name in names:
            model.get_parameter(name).data.copy_(before[name] + delta_of(name))
        return heldout(model, held)

    result["r0"] = loss_with(lambda name: 0)
    print(
        f"\nheld-out loss: {result['base']:.3f} before, {result['full']:.3f} after {args.steps} full steps, "
        f"{result['r0']:.3f} with the projections put back\n"
    )
    print(f"{'rank':>5}{'energy kept':>13}{'loss':>8}{'gain kept':>11}{'the rest alone':>16}{'numbers':>13}")
    for rank in ranks:
        row = dict(rank=rank, energy=float(share[min(rank, len(share)) - 1]))
        row["parameters"] = sum(rank * sum(before[name].shape) for name in names)
        row["loss"] = loss_with(lambda name: cut(svds[name], rank))  # noqa: B023  called at once
        row["loss_of_the_rest"] = loss_with(lambda name: deltas[name] - cut(svds[name], rank))  # noqa: B023
        row["gain"], row["gain_of_the_rest"] = (
            (result["r0"] - row[key]) / (result["r0"] - result["full"]) for key in ("loss", "loss_of_the_rest")
        )
        print(
            f"{rank:5d}{row['energy']:13.1%}{row['loss']:8.3f}{row['gain']:11.1%}{row['gain_of_the_rest']:16.1%}"
            f"{row['parameters']:13,}",
            flush=True,
        )
        result["cut"].append(row)
    print(f"effective rank of dW: {result['effective_rank']:.0f} on average over {len(names)} matrices")
    middle = next(name for name in names[len(names) // 2 :] if "up_proj" in name)
    return (
        result,
        {"dW of the full fine-tune": svds[middle][1], "W itself": torch.linalg.svdvals(before[middle])},
        middle,
    )


def train_lora(args, path, trained, held, rank, shown):
    """LoRA of rank r with the same batches: (a row of the result, the singular values of its B A for `shown`)."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(args.seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=list(TARGETS))
    model = get_peft_model(load(path), lora)
    thin = [parameter for parameter in model.parameters() if parameter.requires_grad]
    train(model, trained, torch.optim.AdamW(thin, args.lora_learning_rate, weight_decay=0.0), args.steps)
    row = dict(rank=rank, loss=heldout(model, held), parameters=sum(parameter.numel() for parameter in thin))
    layer = model.get_submodule("base_model.model." + shown.removesuffix(".weight"))
    B, A = (part["default"].weight.detach() for part in (layer.lora_B, layer.lora_A))
    return row, product_singular_values(B, A)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    ranks, lora_ranks = sorted(set(args.ranks)), sorted(set(args.lora_ranks))
    path = resolve_model(args.model)
    from transformers import AutoTokenizer

    began = time.perf_counter()
    with hub.loading(path, "tokenizer.json or tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    texts = reports(args.seed, HELD_OUT + args.batch_size * args.steps)
    held = batches_of(texts[:HELD_OUT], tokenizer, HELD_OUT)
    trained = batches_of(texts[HELD_OUT:], tokenizer, args.batch_size)
    print(f"an example: {texts[0]}\n{len(texts) - HELD_OUT} reports to train on, {HELD_OUT} held out")
    result, spectra, shown = study_full(args, path, trained, held, ranks)

    result["lora"] = []
    print(f"\n{'LoRA rank':>9}{'loss':>8}{'numbers':>13}")
    for rank in lora_ranks:
        row, s = train_lora(args, path, trained, held, rank, shown)
        result["lora"].append(row)
        print(f"{rank:9d}{row['loss']:8.3f}{row['parameters']:13,}", flush=True)
    spectra[f"B A of LoRA, rank {rank}: exactly {rank}"] = s
    draw_lora(args.steps, result, spectra, shown.replace("model.", "").replace(".weight", ""))
    file = output_dir() / "lora.json"
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(file)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
