"""Flora: train every weight, but keep the gradient and the momentum in few numbers (arXiv 2402.03293).

LoRA's B learns, in effect, the gradient seen through a random A. Flora takes that view at its word. A gradient G (m x n) is kept
as C = G A^T (m x r) with A (r x n) drawn from N(0, 1/r), so that on average C A = G A^T A = G: for Gaussian A

    E ||G A^T A - G||^2 = (n + 1) / r * ||G||^2

No A is stored: a seed is, and A is drawn again whenever it is needed. Every `period` steps the seed changes, or all updates would
lie in the same r directions, and the momentum moves on to the new one: M A_old A_new^T. A move costs noise, so a period is longer
than the momentum remembers. What is left of a weight's optimizer state is r / n of AdamW's first moment, and one number for each row
and column in the place of its second (Adafactor, arXiv 1804.04235).
"""

import weakref
from functools import partial

import torch


def projection(seed, rank, columns, device):
    """A (rank, columns) of N(0, 1/rank), the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rank, columns, generator=generator, device=device) / rank**0.5


def compress(flora, place, number, p):
    """A weight's hook. flora: a weak reference to the optimizer, None once it is gone."""
    if flora() is not None:
        flora().compress(place, number, p)


class Flora(torch.optim.Optimizer):
    """Gradients are compressed as backward makes them, micro-batch by micro-batch, and let go at once: p.grad is always None."""

    def __init__(self, parameters, lr=1e-4, rank=64, beta=0.9, period=50, seed=0):
        super().__init__(parameters, dict(lr=lr, rank=rank, beta=beta, period=period, seed=seed))
        for place, group in enumerate(self.param_groups):
            for number, p in enumerate(group["params"]):
                # Only weakly: a weight whose hook holds the optimizer, and with it the weight, is never let go.
                p.register_post_accumulate_grad_hook(partial(compress, weakref.ref(self), place, number))

    def draw(self, group, number, period, p):
        return projection(group["seed"] + 1_000_003 * period + number, group["rank"], p.shape[1], p.device)

    @torch.no_grad()
    def compress(self, place, number, p):
        """Add p's gradient to C, (m, r); of a vector, such as a norm's weight, all of it."""
        group, state = self.param_groups[place], self.state[p]
        now = state.get("step", 0) // group["period"]
        made = p.grad.float() @ self.draw(group, number, now, p).T if p.ndim == 2 else p.grad.float()
        state["sum"] = state["sum"].add_(made) if "sum" in state else made
        p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for number, p in enumerate(group["params"]):
                state = self.state[p]
                if "sum" not in state:
                    continue
                step, thin = state.get("step", 0), state.pop("sum")
                period, first = divmod(step, group["period"])
                momentum = state.get("momentum", torch.zeros_like(thin))
                wide = self.draw(group, number, period, p) if p.ndim == 2 else None
                if wide is not None and step and not first:
                    momentum = momentum @ self.draw(group, number, period - 1, p) @ wide.T
                state["momentum"] = momentum.lerp_(thin, 1 - group["beta"])
                gradient, mean = (each if wide is None else each @ wide for each in (thin, state["momentum"]))
                mean = mean / (1 - group["beta"] ** (step + 1))
                update = mean / scale(state, gradient, step + 1)
                p.add_((update / max(1, update.square().mean().sqrt())).to(p.dtype), alpha=-group["lr"])
                state["step"] = step + 1


def scale(state, gradient, step):
    """sqrt of the second moment, of a matrix as the product of its rows' and columns' means (Adafactor, 1804.04235)."""
    squares, old = gradient.square() + 1e-30, 1 - step**-0.8
    means = [squares.mean(1), squares.mean(0)] if gradient.ndim == 2 else [squares]
    for number, mean in enumerate(means):
        name = f"square{number}"
        state[name] = state[name].lerp_(mean, 1 - old) if name in state else mean
    if gradient.ndim < 2:
        return state["square0"].sqrt()
    rows, columns = state["square0"], state["square1"]
    return (rows / rows.mean()).sqrt()[:, None] * columns.sqrt()
