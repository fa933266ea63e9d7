"""How much of the full update lies where a variant's update lies: the question behind every one of the variants.

math_demos/lora_lowrank.py cuts the update D of a full fine-tuning to rank r and asks what is left of its gain. Here the same D = W' - W
stands beside each variant's own update U, trained from the same base on the same rows, layer by layer, sums over all layers:

    best      |D_r|^2 / |D|^2                the most that any U of rank r could hold (Eckart-Young)
    held      |Q_l^T D Q_r|^2 / |D|^2        what lies in the r main directions of U, rows and columns; by chance r^2 / (m n)
    cosine    <U, D> / (|U| |D|)             whether U goes where D goes, its own size aside

compare.py --only reach trains and measures them.
"""

from common.files import text_table


def update_of(model, base):
    """{name: W' - W} of the layers that variants train, in float32. A model with an adapter is merged by this."""
    whole = model.merge_and_unload() if hasattr(model, "peft_config") else model
    names = [name for name, each in base.named_parameters() if each.ndim == 2 and "_proj." in name]
    return {
        name: (whole.get_parameter(name).detach() - base.get_parameter(name).detach().to(whole.device))
        for name in names
    }


def best_shares(update, ranks):
    """{rank: share of |D|^2 that its best approximation of that rank holds}, all layers together."""
    import torch

    squares = [torch.linalg.svdvals(each.float()).double() ** 2 for each in update.values()]
    total = sum(float(each.sum()) for each in squares)
    return {str(rank): sum(float(each[:rank].sum()) for each in squares) / total for rank in ranks}


def overlap(full, other, rank):
    """held, chance and cosine of an update beside the full one; its size over that one's."""
    import torch

    held, chance, inner, sizes = 0.0, 0.0, 0.0, [0.0, 0.0]
    for name, wide in full.items():
        thin, wide = other[name].float(), wide.to(other[name].device).float()
        few = min(rank, *thin.shape)
        left, _, right = torch.svd_lowrank(thin, q=min(few + 8, *thin.shape), niter=4)
        square = float(wide.square().sum())
        held += float((left[:, :few].T @ wide @ right[:, :few]).square().sum())
        chance += square * few**2 / wide.numel()
        inner += float((thin * wide).sum())
        sizes = [sizes[0] + float(thin.square().sum()), sizes[1] + square]
    own, total = (max(each, 1e-30) for each in sizes)
    return dict(
        held=held / total, chance=chance / total, cosine=inner / (own * total) ** 0.5, norm=(own / total) ** 0.5
    )


def measure(job, run, base, full, ranks):
    """Train a job and measure its update. full: that of full fine-tuning, filled by the first job, whose name is adamw."""

    def keep_full(model):
        full.update({name: each.cpu() for name, each in update_of(model, base).items()})
        return dict(best=best_shares(full, ranks))

    if job["name"] == "adamw":
        run(job, keep_full)
    else:
        run(job, lambda model: overlap(full, update_of(model, base), job["rank"]))


def told(rows):
    """Both tables as text. rows: finished runs of this part."""
    lines = [
        f"the full update, cut to rank {rank}: {share:.0%}"
        for row in rows
        for rank, share in row.get("best", {}).items()
    ]
    header = ("", "of the full update, held", "by chance", "cosine", "size, full = 1")
    made = [(row["name"], f"{row['held']:.1%}", f"{row['chance']:.2%}", f"{row['cosine']:.2f}", f"{row['norm']:.2f}")
            for row in rows if "held" in row]  # fmt: skip
    return "\n".join([*lines, text_table(header, made)])
