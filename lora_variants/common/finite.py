# Generated from common/finite.py: edit that file, then run `make sync`.
"""Training that stays finite: one gradient that is not a number, and every weight is none. Imports torch: for after the parsing."""

import math

import torch
from transformers import TrainerCallback

from common import screen

IN_A_ROW = 5  # updates left out, and the run ends
OVERFLOWS = 40  # of fp16's loss scale: each one halves it, from 2^16, and at 2^-24 no smaller one helps


class GradientGuard(TrainerCallback):
    """An update whose gradient is not finite is left out, five in a row end the run, as does a loss that is not finite.

    With fp16 the loss scale, which is lowered so, leaves updates out by itself: there forty in a row do. GRPO's logs count
    such updates as skipped_updates. Before a checkpoint the weights are looked at, so that the one that is kept is whole.
    A loop of its own calls `takes`.
    """

    def __init__(self):
        self.skipped, self.in_a_row, self.logged = 0, 0, 0

    def takes(self, norm, step: int, args=None) -> bool:
        """Whether an update is to be made. norm: of its gradient. Raises SystemExit after too many that are not."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        print(f"step {step}: the gradient is not finite, this update is left out", flush=True)
        most = OVERFLOWS if getattr(args, "fp16", False) else IN_A_ROW
        if self.in_a_row == most:
            stop(f"{most} gradients in a row were not finite", step, args)
        return False

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        if not self.takes(whole_norm(gradients), state.global_step + 1, args) and not getattr(args, "fp16", False):
            optimizer.zero_grad()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save and not math.isfinite(whole_norm(p.data for p in model.parameters() if p.requires_grad)):
            stop("a weight is not finite", state.global_step, args)

    def on_log(self, args, state, control, logs=None, **kwargs):
        held_out = [name for name in logs if name.startswith("eval_") and name.endswith("loss")]
        left_out, self.logged = self.skipped > self.logged, self.skipped
        for name in (
            held_out if left_out else ["loss", *held_out]
        ):  # the loss of an update that was left out harms nothing
            if not math.isfinite(logs.get(name, 0)):
                stop(f"{name} is {logs[name]}", state.global_step, args)
        if "reward" in logs:
            logs["skipped_updates"] = self.skipped


def stop(why: str, step: int, args=None, folder=None):
    """End a run that is no longer finite. It stays unfinished, so that no script takes it for the newest."""
    half = " --bf16 true in the place of --fp16 true, where the card has it, or" if getattr(args, "fp16", False) else ""
    where = folder or getattr(args, "output_dir", None) or "its folder"
    told = "stopped at step {step}: {why}. Nothing is saved as the result; in {where} metrics.jsonl and the checkpoints before this step are kept. Try{half} a lower --learning_rate."
    raise SystemExit(screen.text(told, step=step, why=why, where=where, half=half))


def whole_norm(tensors) -> float:
    """The 2-norm of all tensors together; of FSDP's pieces that of the whole."""
    norm = torch.nn.utils.get_total_norm(list(tensors))
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def check_weights(weights, where):
    """Stop before weights are saved of which one is not finite. weights: (name, tensor) pairs. where: the run's folder."""
    for name, tensor in weights:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise SystemExit(
                f"{where}: {name} holds NaN or inf: training went wrong, and nothing is saved as its result. metrics.jsonl and "
                "the checkpoints are kept. Try a lower --learning_rate, and --bf16 true in the place of --fp16 true."
            )
