"""Domain fine-tuning: teach a general chat model to answer in the manner of a doctor's practice (LoRA / QLoRA).

The base model is frozen. Beside each weight matrix W a product of two thin matrices is learned, W + (alpha / r) B A
with B, A of rank r (LoRA, arXiv 2106.09685); with the frozen W kept in 4 bits this is QLoRA (arXiv 2305.14314).
A row becomes one text: prompt, then answer, then the end-of-text token, and the loss is the cross-entropy of

    L = - 1/|answer| * sum over answer tokens of log p(token | everything before it)

What departs from the course script this replaces: the loss counts only the answer (--loss_on all is the course's
way); held-out questions never occur in training; rows too long for --max_length are dropped, not cut.

One GPU:            python train.py --data /path/to/Data_数据
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data DIR --config fast.yaml
As in the course:   python train.py --data DIR --config course.yaml
Override anything:  python train.py --data DIR --learning_rate 1e-4 --max_steps 2000 --price_per_hour 2.5
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from common.evaluation import generate, heldout_loss
from common.fast import collator
from common.masks import show_mask
from common.memory import estimate, tune
from common.models import LoraArgs, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL, data_dir
from common.runs import Run
from data import format_reports, read_folder, split_by_question

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit: QLoRA, 7B on a 12 GB card
    lora_r=16,  # a style and a vocabulary need few directions; more rank costs memory, seldom helps
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_length=1024,  # 200 + 200 Chinese characters and the template are below 600 tokens
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    num_train_epochs=3,  # of 664,001 rows: 249,000 steps, days on any card; --max_steps 2000 is a start
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows an update; --auto cuts these 8 as the card's memory allows
    optim="adamw_torch_fused",  # one kernel for all adapters; their state is 0.3 GB, so 8 bits save nothing
    weight_decay=0.01,
    seed=3407,
    logging_steps=10,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=500,
    per_device_eval_batch_size=8,
    save_steps=500,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out rows
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode() below
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample"),
    eval_rows=16,
    learning_rate=2e-3,  # 24 updates only: a small model bears, and needs, larger steps
    num_train_epochs=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    logging_steps=1,
    eval_steps=8,
    save_steps=8,
    max_new_tokens=96,
)

# The course's template. The model sees the question after "### 问题：" and writes after "### 回答：".
TEMPLATE = """你是一个专业的医疗助手。请根据患者的问题提供专业、准确的回答。

### 问题：
{question}

### 回答：
"""


@dataclass
class Args:
    data: str | None = arg(
        None, "folder of <department>/*.csv files (default: MEDICAL_DATA_DIR, else DATA_DIR/medical)"
    )
    max_chars: int = arg(200, "longest question and longest answer kept, in characters")
    eval_rows: int = arg(500, "rows held out, by question")
    loss_on: Literal["answer", "all"] = arg("answer", "all: the loss counts the prompt, too (the course's way)")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    show_answers: int = arg(3, "held-out questions answered before and after")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def prompt_ids(tokenizer, questions, template=TEMPLATE):
    """Token ids of each question's prompt. Training and inference both call this, so they cannot drift apart."""
    texts = [template.replace("{question}", question.strip()) for question in questions]
    return tokenizer(texts, add_special_tokens=False).input_ids


def encode(rows, tokenizer, max_length, loss_on="answer"):
    """A batch of rows as input_ids and labels, equally long lists; -100 marks tokens that the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    Rows over max_length are left out: an answer that is cut off teaches the model not to stop.
    """
    answers = tokenizer([answer.strip() for answer in rows["answer"]], add_special_tokens=False).input_ids
    batch = {"input_ids": [], "labels": []}
    for prompt, answer in zip(prompt_ids(tokenizer, rows["question"]), answers, strict=True):
        answer = answer + [tokenizer.eos_token_id]
        if len(prompt) + len(answer) <= max_length:
            batch["input_ids"].append(prompt + answer)
            batch["labels"].append((prompt if loss_on == "all" else [-100] * len(prompt)) + answer)
    return batch


def tokenize(table, tokenizer, args, max_length, name):
    """A pyarrow.Table of rows as a datasets.Dataset with the columns of `encode`."""
    from datasets import Dataset, Features, List, Value

    # Named, because datasets would otherwise hash the whole table to find a name.
    dataset = Dataset(table, fingerprint=name.replace(" ", "-")).map(
        encode,
        batched=True,
        fn_kwargs=dict(tokenizer=tokenizer, max_length=max_length, loss_on=args.loss_on),
        remove_columns=table.column_names,
        features=Features(input_ids=List(Value("int32")), labels=List(Value("int32"))),
        desc=f"tokenizing {name}",
    )
    if len(dataset) < len(table):
        print(f"{name}: {len(table) - len(dataset):,} rows over --max_length {max_length} dropped")
    if not len(dataset):
        raise SystemExit(f"{name}: no row fits in --max_length {max_length} tokens.")
    return dataset


def is_chinese(text):
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def measure(model, tokenizer, eval_sets, shown, args, model_args):
    """Held-out loss and perplexity for each language, and the answers to the shown questions."""
    pad, backend = tokenizer.pad_token_id, model_args.backend
    losses = {name: heldout_loss(model, rows, pad) for name, rows in eval_sets.items()}
    prompts = prompt_ids(tokenizer, [row["question"] for row in shown]) if shown else []
    return losses | {"answers": generate(model, tokenizer, prompts, args.max_new_tokens, backend=backend)}


def show(before, after, shown):
    """Print what a person wants to see: the same questions answered by the model before and after."""
    for row, old, new in zip(shown, before["answers"], after["answers"], strict=True):
        print(f"\n{'=' * 100}\nquestion:  {row['question']}\nreference: {row['answer']}")
        print(f"{'-' * 100}\nbefore:    {old or '(empty)'}\n{'-' * 100}\nafter:     {new or '(empty)'}")
    print("=" * 100)
    for name in (key for key in after if key != "answers"):
        print(
            f"held-out perplexity, {name}: {before[name]['perplexity']:.2f} before, {after[name]['perplexity']:.2f} after"
            f" ({after[name]['rows']} rows, {after[name]['tokens']:,} tokens counted)"
        )


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, LoraArgs), "trl:SFTConfig", argv)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    table, reports = read_folder(args.data or data_dir(), args.max_chars)
    print(format_reports(reports))
    train_table, eval_table = split_by_question(table, args.eval_rows, config.seed)
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = tokenize(train_table, tokenizer, args, config.max_length, "training rows")

    # Languages are measured apart: the demo's small English model learns a style in one and little in the other.
    rows = eval_table.to_pylist()
    languages = {"zh": [is_chinese(row["question"]) for row in rows]}
    languages["en"] = [not chinese for chinese in languages["zh"]]
    eval_sets = {
        name: tokenize(eval_table.filter(mask), tokenizer, args, config.max_length, f"held-out rows, {name}")
        for name, mask in languages.items()
        if any(mask)
    }
    show_mask(train_set, tokenizer, args.show_mask)
    tune(config, model_args, train_set)
    shown = sorted(rows, key=lambda row: is_chinese(row["question"]))[: args.show_answers]

    with Run(config, args, model_args, train_set) as run:
        # Imported here and not above, so that --help and bad input answer at once.
        from datasets import concatenate_datasets
        from trl import SFTTrainer

        model = load_model(model_args, config)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=concatenate_datasets(list(eval_sets.values())),
            data_collator=collator(tokenizer, model_args.packing, import_backend(model_args.backend)),
        )
        before = measure(model, tokenizer, eval_sets, shown, args, model_args)
        run.train(trainer)
        run.save(trainer, tokenizer, prompt_template=TEMPLATE)
        after = measure(model, tokenizer, eval_sets, shown, args, model_args)
        run.note(before=before, after=after)
    show(before, after, shown)
    print(f"\nAsk it yourself: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
