"""Teach a vision-language model to read dashboards from a spreadsheet of photos: photo and question in, facts out (LoRA).

The photo becomes tokens (one for 28 x 28 pixels), stands before the question, and the frozen model with thin matrices
beside its weights (LoRA, arXiv 2106.09685) learns to go on with the answer:

    L = - 1/n * sum over the answer's tokens of log p(token | photo, question, everything before)

What departs from the course: the photo keeps its pixels up to --max_pixels (Unsloth's collator by itself shrinks it to
512 wide, where an odometer's digits are gone), only the answer is trained on, a tenth of the photos is held out.

One GPU:            python train.py --data qwen-vl-train.xlsx
A minute, CPU:      python train.py --demo
As in the course:   python train.py --data qwen-vl-train.xlsx --config course.yaml
Override anything:  python train.py --data qwen-vl-train.xlsx --max_pixels 401408 --finetune_vision_layers false
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import device, screen, tokens
from common.cli import ModelArgs, RehearsalArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.rehearse import rehearse
from common.speed import fit
from data import load_splits
from prompt import collator, tokenize, with_pictures

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-VL-3B-Instruct",
    quantization="auto",  # 16-bit weights where they fit; else 4-bit, as in the course
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_pixels=1024 * 784,  # at most 1,024 image tokens; the published model's own cap lets a photo take 15,552
    max_length=2048,  # rows over it are left out and named, never cut
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=30,  # the course's: 240 photos; -1 lets --num_train_epochs decide
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 photos per step
    optim="adamw_torch_fused",
    weight_decay=0.01,
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=10,
    per_device_eval_batch_size=2,
    save_steps=10,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out photos
    metric_for_best_model="loss",
    remove_unused_columns=False,  # the trainer does not know what a collator needs
    dataset_kwargs={"skip_prepare_dataset": True},  # photos are opened when their row's turn comes
    report_to=["none"],
)
# A model of 7.9 million parameters that reads drawn dashboards and says so in a plain form (pretrain.py made it): LoRA
# teaches it the course's form. It knows the question and can see.
DEMO = dict(
    model=str(HERE / "miniature"),
    data=str(HERE / "sample"),
    quantization="none",
    max_pixels=336 * 168,  # the sample's pictures as they are: 72 image tokens
    finetune_vision_layers=False,
    learning_rate=3e-3,  # 5e-3 costs more of the reading elsewhere
    max_steps=200,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    eval_ratio=0.125,  # 224 pictures to learn from, 32 held out
    per_device_eval_batch_size=8,
    eval_steps=100,
    save_steps=100,
    show_mask=1,
    logging_steps=10,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    show_answers=32,  # all that are held out
    max_new_tokens=96,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@dataclass
class Args(RehearsalArgs, ModelArgs):
    data: str | None = arg(
        None, "xlsx, csv or jsonl, or a folder with qwen-vl-train.xlsx (default: VL_INSURANCE_DATA_DIR)"
    )
    image_root: str | None = arg(None, "the folder that image paths start from (default: the file's own)")
    sheet: str | None = arg(None, "which sheet of an xlsx (default: every one with the columns)")
    eval_ratio: float = arg(0.1, "share of the rows held out; rows with equal pictures stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    eval_rows: int = arg(100, "at most so many of the held-out rows are measured while training")
    overfit: int = arg(0, "train on the first N rows only and hold none out: a model that cannot do that has a fault")
    max_pixels: int = arg(1024 * 784, "")
    max_length: int = arg(2048, "")
    lora_r: int = arg(16, "rank of the LoRA update")
    lora_alpha: int = arg(16, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = arg(0.0, "0 is what Unsloth's fast path needs")
    finetune_vision_layers: bool = arg(
        True, "LoRA in the image encoder, too; vLLM leaves such adapters out in silence: merge before serving"
    )
    finetune_language_layers: bool = arg(True, "LoRA in the language model")
    finetune_attention_modules: bool = arg(True, "LoRA in attention: q, k, v, o; qkv and proj in the encoder")
    finetune_mlp_modules: bool = arg(True, "LoRA in the MLPs: gate, up, down")
    show_answers: int = arg(3, "held-out rows answered before and after")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    auto: bool = arg(True, "choose what the card decides: quantization, packing, micro-batch, checkpointing, kernels")
    rows_per_step: int | None = arg(None, "photos per optimizer step (default: batch size x gradient accumulation)")
    packing: bool = arg(False, "a batch's photos in one pass, its rows end to end without padding (backend hf)")
    fused_lora: bool = arg(False, "LoRA in fewer passes over memory; the same result (backend hf)")
    estimate: bool = arg(False, "print which cards the run fits on, what would make it fit, and end")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def lora_targets(args):
    """The layers that get LoRA, as a regular expression over module names.

    The usual list of names would hit gate, up and down of the encoder's MLPs by accident (they have the same names) and
    miss its attention (qkv, proj). The merger between encoder and language model stays frozen.
    """
    text, vision = [], []
    if args.finetune_attention_modules:
        text.append(r"self_attn\.(?:q|k|v|o)_proj")
        vision.append(r"attn\.(?:qkv|proj)")
    if args.finetune_mlp_modules:
        text.append(r"mlp\.(?:gate|up|down)_proj")
        vision.append(r"mlp\.(?:gate|up|down)_proj")
    parts = []
    if args.finetune_language_layers and text:
        parts.append(rf"language_model\.layers\.\d+\.(?:{'|'.join(text)})")
    if args.finetune_vision_layers and vision:
        parts.append(rf"visual\.blocks\.\d+\.(?:{'|'.join(vision)})")
    if not parts:
        raise SystemExit(
            "nothing to train: --finetune_vision_layers and --finetune_language_layers, or both kinds of modules, are off."
        )
    return rf"(?:.*\.)?(?:{'|'.join(parts)})"


def load_model(args, config, path):
    """The frozen base with fresh adapters: W x + alpha / r * B A x, with B and A of rank r, of which only these train."""
    from peft import LoraConfig

    import fast
    from model import attach, load_base

    lora_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=lora_targets(args),
        bias="none",
    )
    nf4 = NF4 if choose_quantization(args.quantization, path) else None
    model = load_base(path, args.backend, nf4, device.dtype(config), args.max_length)
    model = attach(model, lora_config, args, config)
    if args.packing:
        fast.attend_by_row(model)
    if args.fused_lora and args.backend == "hf":
        fast.fuse(model)
    return model


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    lora_targets(args)
    if args.padding_free:
        raise SystemExit("--padding_free: TRL has it for text only.")
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:

        def work(pixels, rows):  # a token is 28 x 28 pixels, and four patches in the encoder; the text: some 300 tokens
            taken = min(args.max_length, pixels // 784 + 300)
            return dict(tokens=rows * taken, patches=rows * pixels // 196 if args.finetune_vision_layers else 0)

        fit.estimate(args, "max_pixels", work)
        return print(f"\nA row is a photo: at most {args.max_pixels // 784:,} image tokens, and its text.")
    screen.heading("data")
    train_rows, eval_rows = load_splits(args)
    eval_rows = eval_rows[: args.overfit or args.eval_rows]
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    config.max_length = None  # TRL would cut rows, inside an answer or before it, where the loss is 0 in silence
    from trl import SFTTrainer

    import fast
    from answers import measure, show
    from common import runs
    from model import load_processor

    processor = load_processor(path, args.max_pixels)
    train_set = tokenize(train_rows, processor, args.max_length, "training rows")
    eval_set = tokenize(eval_rows, processor, args.max_length, "held-out rows")
    tokens.show_mask(train_set, processor.tokenizer, args.show_mask)
    fast.tune(config, args, path, train_set, processor.image_token_id)
    train_set = tokens.longest(train_set, config, args.longest_steps)
    counts = sorted(row.count(processor.image_token_id) for row in train_set["input_ids"])
    print(f"a picture is {counts[0]:,} to {counts[-1]:,} tokens, {counts[len(counts) // 2]:,} in the middle, "
          f"at --max_pixels {args.max_pixels:,}")  # fmt: skip

    with runs.Run(args, config, train_set) as run:
        model = load_model(args, config, path)
        opened = partial(with_pictures, backend=args.backend)
        collate = collator(model, processor, args.backend, args.max_length)
        if args.packing:
            opened, collate = partial(fast.with_pictures, cap=args.max_pixels), fast.collator(model.config)
        trainer = SFTTrainer(
            model=model,
            processing_class=processor,
            args=config,
            train_dataset=opened(train_set),
            eval_dataset=opened(eval_set) if config.eval_strategy != "no" else None,
            data_collator=collate,
        )
        if args.packing:
            fast.settle(model)
        shown = eval_rows[: args.show_answers]
        screen.heading("before training")
        before = measure(trainer, processor, shown, args)
        run.train(trainer)
        run.save(trainer, processor, prompt=shown[0]["prompt"] if shown else eval_rows[0]["prompt"])
        screen.heading("after training")
        after = measure(trainer, processor, shown, args)
        run.note(before=before, after=after)
    show(before, after, shown)
    asked = command("infer.py", "--compare", "--adapter", run.folder, "--image", Path(eval_rows[0]["image"]))
    print("\n" + screen.text("Ask it yourself: {command}", command=asked))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
