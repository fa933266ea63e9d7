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
from pathlib import Path

from common.cli import arg, parse
from common.masks import show_mask
from common.memory import estimate
from common.models import find_model, import_backend
from common.runs import Run
from data import DataArgs, format_report, load_image, read_rows, split_rows, tokenized, with_pictures
from fields import FIELDS, score
from fields import parse as parse_answer
from model import MINIATURE, VisionArgs, answers, load_model, load_processor
from pretrain import ALL

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-VL-3B-Instruct",
    quantization="auto",  # 16-bit weights where they fit; else 4-bit, as in the course
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_pixels=1024 * 784,  # at most 1,024 image tokens; the published model's own cap lets a photo take 15,552
    max_row_tokens=2048,  # rows over it are left out and named, never cut
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=30,  # the course's: 240 photos; -1 lets --num_train_epochs decide
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 photos an update
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
    max_length=None,  # TRL would cut rows at 1,024: inside an answer, or before it, where the loss is 0 in silence
    remove_unused_columns=False,  # the trainer does not know what a collator needs
    dataset_kwargs={"skip_prepare_dataset": True},  # photos are opened when their row's turn comes
    report_to=["none"],
)
# A model of 7.9 million parameters that reads drawn dashboards and says so in a form of its own (pretrain.py made it): LoRA
# teaches it the course's question and the course's form. What it has not to learn is to see.
DEMO = dict(
    model=str(MINIATURE),
    base_prompt=ALL,
    data=str(HERE / "sample"),
    quantization="none",
    max_pixels=336 * 168,  # the sample's pictures as they are: 72 image tokens
    finetune_vision_layers=False,
    finetune_mlp_modules=False,
    learning_rate=5e-3,  # half of it reads no better in twice the steps, double reads worse
    max_steps=200,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    eval_ratio=0.125,  # 224 pictures to learn from, 32 held out
    per_device_eval_batch_size=8,
    eval_steps=100,
    save_steps=100,
    logging_steps=10,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    show_answers=6,
    max_new_tokens=96,
)


@dataclass
class Args(DataArgs):
    max_pixels: int = arg(1024 * 784, "")
    max_row_tokens: int = arg(2048, "")
    overfit: int = arg(0, "train on the first N rows only and hold none out: a model that cannot do that has a fault")
    eval_rows: int = arg(100, "at most so many of the held-out rows are measured while training")
    show_answers: int = arg(3, "held-out rows answered before and after")
    base_prompt: str | None = arg(
        None, "what the model is asked before training, if it knows only a question of its own"
    )
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    estimate: bool = arg(False, "print which cards the run fits on, what would make it fit, and end")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data, args.image_root, args.sheet)
    print(format_report(report))
    if args.overfit:
        return rows[: args.overfit], rows[: args.overfit]
    train_rows, eval_rows = split_rows(rows, args.eval_ratio, args.split_seed)
    return train_rows, eval_rows[: args.eval_rows]


def collator(model, processor, backend, max_row_tokens):
    """What makes a batch of rows. None: TRL's own, which trains on the completion and on nothing else."""
    if backend != "unsloth":
        return None
    from unsloth.trainer import UnslothVisionDataCollator

    return UnslothVisionDataCollator(
        model,
        processor,
        max_seq_length=max_row_tokens,
        resize="max",  # its default shrinks every photo to 512 pixels wide, and inference then sees another picture
        train_on_responses_only=True,  # its default also trains on the question
        instruction_part="<|im_start|>user\n",
        response_part="<|im_start|>assistant\n",
    )


def measure(trainer, processor, shown, args, model_args, prompt=None):
    """Held-out loss, and answers to the shown rows: as they are, and with the pictures exchanged. prompt: instead of theirs."""
    model, prompts = trainer.model, [prompt or row["prompt"] for row in shown]
    # Each row gets the next one's picture. A model that answers the same to it does not look.
    paths = [row["image"] for row in shown]
    made = {"loss": trainer.evaluate()["eval_loss"]} if trainer.eval_dataset is not None else {}
    for name, order in (("answers", paths), ("exchanged", paths[1:] + paths[:1])):
        pictures = [lambda path=path: load_image(path) for path in order]
        made[name] = answers(model, processor, pictures, prompts, args.max_new_tokens, 8, model_args.backend)
    return made


def show(before, after, shown, base_prompt):
    """Print what a person wants to see: the same photos read before and after."""
    truth = [parse_answer(row["response"]) for row in shown]
    for row, old, new in zip(shown, before["answers"], after["answers"], strict=True):
        print(
            f"\n{'=' * 100}\npicture:     {row['image']}\nquestion:    {row['prompt']}\nreference:   {row['response']}"
        )
        asked = f"asked in its own words, {base_prompt}\n" if base_prompt else ""
        print(f"{'-' * 100}\nbefore:      {asked}{old or '(empty)'}\n{'-' * 100}\nafter:       {new or '(empty)'}")
    print("=" * 100)
    others = truth[1:] + truth[:1]
    for name, each in (("before", before), ("after", after)):
        if shown:
            facts = [parse_answer(text) for text in each["answers"]]
            moved = [parse_answer(text) for text in each["exchanged"]]
            letters = sum(text == row["response"] for text, row in zip(each["answers"], shown, strict=True))
            scores = score(facts, truth)
            print(f"{name}: {letters} of {len(shown)} answers to the letter; mileage {scores['fields']['mileage']['exact']:.2f}, "
                  f"all {len(FIELDS)} facts {scores['document_exact']:.2f}; with the next row's picture "
                  f"{score(moved, others)['document_exact']:.2f} say what that picture shows and "
                  f"{score(moved, truth)['document_exact']:.2f} what they said before")  # fmt: skip
    if "loss" in before:
        print(f"held-out loss: {before['loss']:.3f} before, {after['loss']:.3f} after")


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, VisionArgs), "trl:SFTConfig", argv)
    if config.max_length is not None:
        raise SystemExit(
            "--max_length would cut answers in silence: take --max_row_tokens, which leaves such rows out, and --max_pixels."
        )
    if config.packing or config.padding_free:
        raise SystemExit("--packing and --padding_free: TRL has neither for pictures.")
    if args.estimate:

        def work(pixels, rows):  # a token is 28 x 28 pixels, and four patches in the encoder; the text: some 300 tokens
            tokens = min(args.max_row_tokens, pixels // 784 + 300)
            return dict(tokens=rows * tokens, patches=rows * pixels // 196 if model_args.finetune_vision_layers else 0)

        return estimate(config, model_args, "max_pixels", args.max_pixels, work)
    train_rows, eval_rows = load_splits(args)
    path = find_model(model_args)
    processor = load_processor(path, args.max_pixels)
    train_set = tokenized(train_rows, processor, args.max_pixels, args.max_row_tokens, "training rows")
    eval_set = tokenized(eval_rows, processor, args.max_pixels, args.max_row_tokens, "held-out rows")
    show_mask(train_set, processor.tokenizer, args.show_mask)
    counts = sorted(sum(token == processor.image_token_id for token in row) for row in train_set["input_ids"])
    print(
        f"a picture is {counts[0]:,} to {counts[-1]:,} tokens, {counts[len(counts) // 2]:,} in the middle, at --max_pixels {args.max_pixels:,}"
    )

    with Run(config, args, model_args, train_set) as run:
        # Imported here and not above, so that --help and bad input answer at once.
        from trl import SFTTrainer

        backend = import_backend(model_args.backend)
        model = load_model(model_args, config, args.max_row_tokens)
        trainer = SFTTrainer(
            model=model,
            processing_class=processor,
            args=config,
            train_dataset=with_pictures(train_set, backend),
            eval_dataset=with_pictures(eval_set, backend) if config.eval_strategy != "no" else None,
            data_collator=collator(model, processor, backend, args.max_row_tokens),
        )
        shown = eval_rows[: args.show_answers]
        before = measure(trainer, processor, shown, args, model_args, args.base_prompt)
        run.train(trainer)
        run.save(trainer, processor, prompt=shown[0]["prompt"] if shown else eval_rows[0]["prompt"])
        after = measure(trainer, processor, shown, args, model_args)
        run.note(before=before, after=after)
    show(before, after, shown, args.base_prompt)
    print(f"\nAsk it yourself: python {HERE.name}/infer.py --adapter {run.folder} --image {eval_rows[0]['image']}")


if __name__ == "__main__":
    main()
