"""Where GRPO starts: a few updates of SFT on the form, for models that never write it, and what the KL is measured to.

Rewards can only prefer what is sampled. A small model never samples the tags; this shows it what they look like. Imports
torch: for after the parsing.
"""

import random

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from torch.nn.utils.rnn import pad_sequence

from common import screen
from common.finite import GradientGuard
from common.runs import save_adapter
from prompt import encode


def warm_up(model, tokenizer, rows, steps, learning_rate, batch_rows, seed):
    """`steps` updates of SFT on gold solutions in the form, `batch_rows` rows each. Returns the last loss, nats per token."""
    draw, trained = random.Random(seed), [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    guard = GradientGuard()
    model.train()
    for step in screen.bar("warm-up", None, " steps", range(1, steps + 1)):
        ids, labels = encode(tokenizer, draw.sample(rows, min(batch_rows, len(rows))))
        mask = [[1] * len(row) for row in ids]
        batch = dict(input_ids=(ids, tokenizer.pad_token_id), labels=(labels, -100), attention_mask=(mask, 0))
        batch = {
            name: pad_sequence([torch.tensor(row) for row in values], True, padding).to(model.device)
            for name, (values, padding) in batch.items()
        }
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        if guard.takes(torch.nn.utils.clip_grad_norm_(trained, 1.0), step):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def start_policy(model, tokenizer, rows, args, run):
    """The model that GRPO starts from: warmed up if asked for. The adapter is kept, as warmup in the run's folder.

    A run that goes on loads it from there: it is also what the KL is measured to. So do all processes but the first.
    """
    if not args.warmup_sft:
        return
    kept, new = run.folder / "warmup", run.folder / ".warmup"
    begins = run.main and not kept.exists()
    if begins:
        loss = warm_up(model, tokenizer, rows, args.warmup_sft, args.warmup_sft_lr, args.warmup_sft_rows, args.seed)
        print(f"warm-up: {args.warmup_sft} updates on gold solutions in the form, last loss {loss:.2f}")
        save_adapter(model, tokenizer, new, args.model)
        new.rename(kept)
    if run.world > 1:
        torch.distributed.barrier()
    if not begins:
        set_peft_model_state_dict(model, load_peft_weights(str(kept), device=str(model.device)))


def set_reference(model, warmed_up):
    """What the KL is measured to: the model as it is now, so that the KL is 0 at step 1.

    TRL gives a model that comes with an adapter a second one, "ref", a copy of the first. After a warm-up that is what
    is wanted (the bare model has never written a tag: a KL to it would pull the form away), but TRL has copied it
    before rounding the first to 16 bits in a 4-bit model. Without a warm-up the bare model is the same and costs nothing.
    """
    if "ref" not in model.peft_config:
        return
    if not warmed_up:
        return model.delete_adapter("ref")
    for name, parameter in model.named_parameters():
        if ".default." in name:
            reference = model.get_parameter(name.replace(".default.", ".ref."))
            reference.data = parameter.data.float().clone()


def drop_reference(model):
    """What the KL was measured to is no part of the result."""
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
