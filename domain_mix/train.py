"""Fine-tune one model on a mixture of domains: several manners of answering, told apart by the question alone.

With one domain every answer has one style, and a model learns it for good: asked about anything else it answers in that
style, too. In a mixture the model has to choose. data.py builds one; the loss is the mean over all answers' tokens,

    L = - 1/N * sum over rows, sum over answer tokens of log p(token | everything before it)

so a domain weighs as many tokens as its answers have, not as many rows: long answers count more than their ratio says.
NEFTune (arXiv 2310.05914) adds uniform noise to the embeddings while training, alpha / sqrt(length * width) at most
per number: the model then copies the wording of the rows less.

What departs from the course script this replaces: adapter and tokenizer are in one folder; the loss counts the answer
only; equal questions are never on both sides of the split.

One GPU:            python data.py --plan small --out mix.jsonl && python train.py --data mix.jsonl
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data mix.jsonl --config fast.yaml
As in the course:   python train.py --data mix.jsonl --config course.yaml
Override anything:  python train.py --data mix.jsonl --learning_rate 1e-4 --neftune_noise_alpha 0
"""

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.evaluation import generate, heldout_loss
from common.fast import collator
from common.masks import show_mask
from common.memory import estimate, tune
from common.models import LoraArgs, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL, data_dir
from common.runs import Run
from data import DEMO_PLAN, format_reports, from_alpaca, load_plan, mix, normalise, read_local

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit: QLoRA, 7B on a 12 GB card
    lora_r=16,  # several styles still need few directions
    lora_alpha=32,  # alpha / r = 2: the update counts twice, as if the learning rate were larger
    lora_dropout=0.0,  # NEFTune is the regulariser here; 0 is what the fast paths need
    max_length=2048,  # an abstract and its question fit
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    num_train_epochs=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows an update; --auto cuts these 8 as the card's memory allows
    neftune_noise_alpha=5.0,  # the paper's smallest; 0 switches it off
    optim="adamw_torch_fused",  # one kernel for all adapters; their state is 0.3 GB, so 8 bits save nothing
    weight_decay=0.01,
    seed=3407,
    logging_steps=10,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=50,
    per_device_eval_batch_size=8,
    save_steps=50,
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out rows
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode() below
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(DEMO_PLAN),  # a plan: the mixture is built in memory
    learning_rate=2e-3,  # few updates only: a small model bears, and needs, larger steps
    num_train_epochs=2,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    logging_steps=1,
    eval_steps=14,
    save_steps=14,
    max_new_tokens=64,
)

# One prompt for all domains: which manner to answer in has to be told from the question.
SYSTEM = (
    "You are a knowledgeable assistant for science, medicine, engineering and everyday questions. "
    "Answer in the manner that suits the field of the question."
)


@dataclass
class Args:
    data: str | None = arg(
        None, "rows to train on (JSON, JSONL, Parquet), or a plan (.yaml) (default: DATA_DIR/domain_mix/small.jsonl)"
    )
    eval_ratio: float = arg(0.1, "share of the rows held out, by question")
    split_seed: int = arg(42, "of the split; evaluate.py rebuilds it from this")
    eval_rows: int = arg(500, "held-out rows measured while training: all of a large mixture would take longer")
    show_answers: int = arg(4, "held-out questions answered before and after, one a source")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def chatml(messages) -> str:
    """Messages {"role", "content"} as ChatML, up to where the assistant writes.

    Written out rather than left to the tokenizer's own template, which differs from model to model: Qwen's puts in a
    system prompt of its own. A text cannot end its turn: the markers are taken out of what people and web pages wrote.
    """
    turns = [(turn["role"], re.sub(r"<\|(?:im_start|im_end|endoftext)\|>", "", turn["content"])) for turn in messages]
    return (
        "".join(f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    )


def question_of(row) -> str:
    """What the user says: the instruction, and the input under it if there is one."""
    return "\n\n".join(part for part in (row["instruction"].strip(), row["input"].strip()) if part)


def prompt_ids(tokenizer, rows, system=SYSTEM):
    """Token ids of each row's prompt. Training, evaluation and inference all end up in chatml()."""
    opening = [{"role": "system", "content": system}] if system else []
    texts = [chatml([*opening, {"role": "user", "content": question_of(row)}]) for row in rows]
    return tokenizer(texts, add_special_tokens=False).input_ids


def answer_ids(tokenizer, rows):
    """Token ids of each row's answer and the end token: a model that never sees it in training never stops."""
    ids = tokenizer([row["output"].strip() for row in rows], add_special_tokens=False).input_ids
    return [answer + [tokenizer.eos_token_id] for answer in ids]


def encode(rows, tokenizer, max_length):
    """Rows as input_ids and labels, equally long lists; -100 marks tokens that the loss skips.

    Rows over max_length are left out: an answer that is cut off teaches the model not to stop.
    """
    batch = {"input_ids": [], "labels": []}
    for prompt, answer in zip(prompt_ids(tokenizer, rows), answer_ids(tokenizer, rows), strict=True):
        if len(prompt) + len(answer) <= max_length:
            batch["input_ids"].append(prompt + answer)
            batch["labels"].append([-100] * len(prompt) + answer)
    return batch


def tokenize(rows, tokenizer, max_length, name):
    """Rows (dicts of instruction, input, output) as a datasets.Dataset with the columns of `encode`."""
    from datasets import Dataset, Features, List, Value

    features = Features(input_ids=List(Value("int32")), labels=List(Value("int32")))
    dataset = Dataset.from_dict(encode(rows, tokenizer, max_length), features=features)
    if len(dataset) < len(rows):
        print(f"{name}: {len(rows) - len(dataset):,} of {len(rows):,} rows are over --max_length {max_length}: dropped")
    if not len(dataset):
        raise SystemExit(f"{name}: no row fits in --max_length {max_length} tokens.")
    return dataset


def read_rows(data):
    """The rows of --data, checked. A row that cannot be used is left out, counted, and the first ones are named."""
    path = Path(data or data_dir() / "small.jsonl")
    if path.suffix in (".yaml", ".yml"):
        rows, reports = mix(load_plan(path))
        print(format_reports(reports))
        return rows
    if not path.exists():
        raise SystemExit(f"{path}: no such file. Build it: python data.py --plan small --out {path}")
    rows, wrong = [], []
    for where, row in read_local(path):
        try:
            if not isinstance(row, dict):
                raise row if isinstance(row, ValueError) else ValueError(f"not an object but {type(row).__name__}")
            instruction, extra, output = from_alpaca(row)
            if not instruction.strip() or not output.strip():
                raise ValueError("empty instruction" if not instruction.strip() else "empty output")
            source = str(row.get("source") or "all")
            rows.append({"instruction": instruction, "input": extra, "output": output, "source": source})
        except ValueError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        print(f"{path}: {len(wrong):,} rows dropped, the first ones:\n  " + "\n  ".join(wrong[:5]))
    if not rows:
        raise SystemExit(f"{path}: no row with instruction, input and output that can be used.")
    print(f"{path}: {len(rows):,} rows")
    return rows


def split(rows, eval_ratio=0.1, seed=42):
    """(training rows, held-out rows), held out by question: rows with equal questions stay on one side."""
    if not 0 < eval_ratio < 1:
        raise SystemExit(f"--eval_ratio {eval_ratio}: expected a share between 0 and 1.")
    questions = [normalise(question_of(row)) for row in rows]
    order = sorted(set(questions))
    random.Random(seed).shuffle(order)
    held = set(order[: max(1, round(len(order) * eval_ratio))])
    train = [row for row, question in zip(rows, questions, strict=True) if question not in held]
    heldout = [row for row, question in zip(rows, questions, strict=True) if question in held]
    random.Random(seed).shuffle(heldout)  # so that the first 500 are of all parts of the file
    if not train:
        raise SystemExit(
            f"{len(rows)} rows with {len(order)} question(s) cannot be split in two: more rows are needed."
        )
    return train, heldout


def measure(model, tokenizer, eval_sets, shown, args, model_args):
    """Held-out loss and perplexity for each source, and the answers to the shown questions."""
    pad, backend = tokenizer.pad_token_id, model_args.backend
    losses = {name: heldout_loss(model, rows, pad) for name, rows in eval_sets.items()}
    prompts = prompt_ids(tokenizer, shown) if shown else []
    return losses | {"answers": generate(model, tokenizer, prompts, args.max_new_tokens, backend=backend)}


def show(before, after, shown):
    """Print what a person wants to see: the same questions answered by the model before and after."""
    for row, old, new in zip(shown, before["answers"], after["answers"], strict=True):
        print(f"\n{'=' * 100}\n[{row['source']}] {row['instruction']}\nreference: {row['output']}")
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
    train_rows, eval_rows = split(read_rows(args.data), args.eval_ratio, args.split_seed)
    eval_rows = eval_rows[: max(1, args.eval_rows)]
    tokenizer = load_tokenizer(find_model(model_args))
    if "<|im_start|>" not in tokenizer.get_vocab():
        raise SystemExit(
            f"{model_args.model}: its tokenizer has no <|im_start|>; take a ChatML model (Qwen2.5, SmolLM2)."
        )
    train_set = tokenize(train_rows, tokenizer, config.max_length, "training rows")
    eval_sets = {
        name: tokenize(
            [row for row in eval_rows if row["source"] == name], tokenizer, config.max_length, f"held-out {name}"
        )
        for name in sorted({row["source"] for row in eval_rows})
    }
    # The first of each source, then the second ones: a few answers show all domains.
    nth = {id(row): sum(other["source"] == row["source"] for other in eval_rows[:i]) for i, row in enumerate(eval_rows)}
    shown = sorted(eval_rows, key=lambda row: nth[id(row)])[: args.show_answers]
    show_mask(train_set, tokenizer, args.show_mask)
    tune(config, model_args, train_set)
    if model_args.packing and config.neftune_noise_alpha:
        # NEFTune divides by the root of the length it sees, here that of several rows end to end: undo what is too much.
        config.neftune_noise_alpha *= math.sqrt(config.per_device_train_batch_size)

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
        run.save(trainer, tokenizer, system_prompt=SYSTEM)
        after = measure(model, tokenizer, eval_sets, shown, args, model_args)
        run.note(before=before, after=after)
    show(before, after, shown)
    print(f"\nTalk to it: python {HERE.name}/chat.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
