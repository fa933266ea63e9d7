"""LoRA and nine relatives, each a function: what it changes in W x + s B A x, where A and B begin, or how they move.

All train A (r x in) and B (out x r) beside a frozen W (out x in), s = alpha / r. The implementations are PEFT's and PyTorch's;
what stands here is what each one is. A function takes `start` and returns (the model, its optimizer or None for AdamW):

    start.build(**fields)   the model with LoRA layers, by peft.LoraConfig; fields are what the variant changes in it
    start.args              learning_rate, lora_r, lora_alpha, loraplus_ratio
    start.batches           () -> batches of training rows, for EVA's pass over the data
    start.path              the base's folder
"""

import importlib.util
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace


def lora(start):
    """W x + s B A x with B = 0: training begins at the base. The update has rank r (arXiv 2106.09685)."""
    return start.build(), None


def rslora(start):
    """s = alpha / sqrt(r) in the place of alpha / r, so that large ranks still learn (arXiv 2312.03732).

    The size of B A x grows as sqrt(r), not as r. At r 16 and alpha 16 this is s = 4: also a four times larger step.
    """
    return start.build(use_rslora=True), None


def dora(start):
    """m (W + s B A) / ||W + s B A||, with a trained length m for each output (arXiv 2402.09353).

    Length and direction learn apart, as in full fine-tuning. The norms are taken at each step, and the result is no
    W + s B A: it has to be merged before another program reads it.
    """
    return start.build(use_dora=True), None


def pissa(start):
    """W = U S V^T; s B A begins as its r largest parts, and W is left with the rest (arXiv 2404.02948).

    The large directions are trained, not small random ones. The base is no longer the public one: see MUTATES below.
    """
    return start.build(init_lora_weights="pissa_niter_16"), None  # 16 rounds of a randomised SVD: seconds, not minutes


def olora(start):
    """W = Q R; B begins as the first r columns of Q, which are orthonormal, A as the first r rows of R (arXiv 2406.01775).

    As with PiSSA their product is taken out of W.
    """
    return start.build(init_lora_weights="olora"), None


def eva(start):
    """A begins as the r main directions of what each layer reads, on the training rows; B = 0 (arXiv 2410.07170).

    Costs a pass over some batches before training. rho = 1 keeps every layer at rank r; the paper's 2 moves ranks to layers
    that need more of them, which is another comparison.
    """
    from peft import EvaConfig, initialize_lora_eva_weights

    model = start.build(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    initialize_lora_eva_weights(model, start.batches(), show_progress_bar=False)
    return model, None


def loftq(start):
    """W is frozen in 4 bits, and s B A begins as the best rank-r part of what was lost, W - Q(W) (arXiv 2310.08659)."""
    from peft import replace_lora_weights_loftq

    model = start.build()
    replace_lora_weights_loftq(model, str(start.path))
    return model, None


def loraplus(start):
    """AdamW with a learning rate for B that is 16 times that of A: B begins at 0 and has further to go (arXiv 2402.12354)."""
    import torch
    from peft.optimizers import create_loraplus_optimizer

    model, args = start.build(), start.args
    rates = dict(lr=args.learning_rate, loraplus_lr_ratio=args.loraplus_ratio)
    return model, create_loraplus_optimizer(model, torch.optim.AdamW, **rates, weight_decay=0.0)


def lorafa(start):
    """A stays as it was drawn, only B learns: layers need not keep x for A's gradient (arXiv 2308.03303).

    PEFT's optimizer also turns B's gradient into that of W: (1 / s^2) dB (A A^T)^-1.
    """
    from peft.optimizers import create_lorafa_optimizer

    model, args = start.build(), start.args
    return model, create_lorafa_optimizer(model, r=args.lora_r, lora_alpha=args.lora_alpha, lr=args.learning_rate)


def muon(start):
    """Muon moves A and B by orthogonalised momentum: all r directions of a step are equally long (arXiv 2502.16982).

    match_rms_adamw gives the step the size of AdamW's, so that learning rates can be compared.
    """
    import torch

    model = start.build()
    trained = [each for each in model.parameters() if each.requires_grad]
    how = dict(lr=start.args.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return model, torch.optim.Muon(trained, **how)


VARIANTS = {each.__name__: each for each in (lora, rslora, dora, pissa, olora, eva, loftq, loraplus, lorafa, muon)}
# A and B begin as something that takes seconds to compute, and are kept: PEFT's init_lora_weights of each.
COMPUTED = {"pissa": "pissa_niter_16", "olora": "olora", "eva": "eva", "loftq": True}
MUTATES = ("pissa", "olora")  # change the frozen W, so their A and B mean nothing on the public base
NOT_FUSED = {
    "dora": "its layers are not W x + s B A x",
    "lorafa": "fused layers keep x for A's gradient, which is what it saves",
}
PORTABLE = {name: "yes" for name in VARIANTS} | {
    "pissa": "converted, rank 2r",
    "olora": "converted, rank 2r",
    "dora": "merge first",
    "loftq": "on the 4-bit base",
}


def has_four_bits() -> bool:
    """Whether LoftQ can begin here."""
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None


def check(args):
    """Say what does not fit together before anything is loaded; set what the variant decides: args.quantization, fused_lora.

    Raises SystemExit.
    """
    name = args.variant
    if args.full not in (None, "adamw", "flora"):
        raise SystemExit(f"--full {args.full}: adamw or flora.")
    if args.full and "variant" in args.given:
        raise SystemExit(f"--full {args.full} trains every weight, --variant {name} an adapter: give one of them.")
    if args.full or name in MUTATES:
        what = f"--full {args.full}" if args.full else f"--variant {name}"
        if args.quantization == "4bit":
            raise SystemExit(f"{what} changes the base's weights, which 4 bits cannot hold: --quantization none.")
        args.quantization = "none"
    elif name == "loftq":
        if args.quantization == "none":
            raise SystemExit("--variant loftq makes up for what 4 bits lose: --quantization 4bit.")
        if not importlib.util.find_spec("bitsandbytes"):
            raise SystemExit(
                "--variant loftq needs a base in 4 bits, and so an NVIDIA GPU and bitsandbytes: not installed."
            )
        args.quantization = "4bit"
    if not args.full and name in NOT_FUSED and (args.fused_lora or args.auto):
        if args.fused_lora and "fused_lora" in args.given:
            raise SystemExit(f"--fused_lora does not go with --variant {name}: {NOT_FUSED[name]}.")
        args.fused_lora = False
        args.given = sorted({*args.given, "fused_lora"})  # --auto leaves it so
        print(f"fused LoRA is off: {name}: {NOT_FUSED[name]}")


def make(name, build, args, path, batches=None, init=None, fresh=True):
    """(model with the variant's LoRA layers, its optimizer or None for AdamW).

    build(**fields), path, batches: see above. init: a folder, for A and B as they began, of a variant that computes them. fresh=False:
    they are taken from there, as by a run that is gone on with: another machine's SVD would be another base.
    """
    if fresh or name not in COMPUTED:
        model, optimizer = VARIANTS[name](SimpleNamespace(build=build, args=args, path=path, batches=batches))
        if name in COMPUTED:
            keep(model, Path(init))
    else:
        if not Path(init).is_dir():
            raise SystemExit(
                f"{init} is missing, in which A and B stand as they began: without it the run cannot be gone on with."
            )
        model, optimizer = build(init_lora_weights=False), None
        model.load_adapter(str(init), "default", is_trainable=True)
        model.peft_config["default"].init_lora_weights = COMPUTED[name]  # a checkpoint says what it is
    if name in MUTATES:
        take_out(model, Path(path))
    return model, optimizer


def keep(model, folder):
    """Write A and B as they began into `folder`, whole or not at all."""
    new = folder.with_name(f".{folder.name}.new")
    for each in (new, folder):
        shutil.rmtree(each, ignore_errors=True)
    model.save_pretrained(new)
    new.rename(folder)


def take_out(model, path):
    """W - s B A for each layer, W read from the base's files. PEFT has taken out an A and B that it rounded afterwards."""
    import torch
    from peft.tuners.lora import LoraLayer
    from safetensors import safe_open

    layers = {name.removeprefix("base_model.model.") + ".weight": module
              for name, module in model.named_modules() if isinstance(module, LoraLayer)}  # fmt: skip
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as weights, torch.no_grad():
            for name in layers.keys() & set(weights.keys()):
                module, weight = layers[name], layers[name].get_base_layer().weight
                product = module.lora_B["default"].weight @ module.lora_A["default"].weight
                whole = weights.get_tensor(name).to(weight.device).float()
                weight.data = (whole - module.scaling["default"] * product.float()).to(weight.dtype)


def plain_on_save(name, model, init):
    """Have save_pretrained write a LoRA on the public base. Returns how many times the trained rank it has.

    W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]: exact, at twice the rank. PEFT does it where it is told how A and B began.
    """
    if name not in MUTATES:
        return 1
    model.save_pretrained = partial(model.save_pretrained, path_initial_model_for_weight_conversion=str(init))
    return 2
