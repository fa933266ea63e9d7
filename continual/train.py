"""Continued pretraining: a model reads a domain's raw text before it is taught to answer (arXiv 2004.10964).

Supervised fine-tuning teaches a manner; what a model knows it read in pretraining. So that goes on here, with LoRA in all
linear layers at a rank large enough for facts, on documents end to end, and every token counts:

    L = - 1/n * sum over tokens of log p(token | what stands before it in the same document)

What is read pushes out what was known: everyday text, and the form of answers. --replay mixes a share of such rows back in
(arXiv 2403.08763), and each is measured before and after. --embeddings trains the embedding and lm_head, too, at a tenth of
the learning rate: each of their rows is moved by its own word alone. Tied ones stay one matrix, or merging would not give the
model that was trained. What departs from the textbook: attention is kept inside a document, near-duplicates go first.

One GPU:            python train.py --data texts/ --general general.jsonl --chats chats.jsonl
Half a minute, CPU: python train.py --demo
Then answers:       python sft.py --start outputs/continual/RUN --chats chats.jsonl
Override anything:  python train.py --data texts/ --general general.jsonl --replay 0.25 --tokens 50000000 --embeddings
"""

import math
from dataclasses import dataclass
from pathlib import Path

import data
import packs
from common import device, models, screen, tokens
from common.cli import SftArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.rehearse import rehearse
from common.speed import fit
from prompt import document_ids, encode, template_of

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B",  # a base: what it learns is taught to answer afterwards (sft.py)
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit
    lora_r=64,  # facts need more room than a manner does
    lora_alpha=64,  # alpha = r keeps the update's scale at 1
    replay=0.1,  # of the tokens: enough against forgetting in most reports, and cheap
    max_length=2048,  # tokens of a sequence, filled with documents; longer ones are cut
    learning_rate=1e-4,  # half of what SFT takes: the more steps, the further away
    lr_scheduler_type="cosine",
    warmup_steps=0.03,  # a share of the steps: the rate went down once already, and the first steps forget the most
    num_train_epochs=1,  # --tokens counts instead; what is read often is learned by heart
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,  # 2 x 8 sequences = 32,768 tokens per step; --auto cuts these 16 as the card allows
    optim="adamw_torch_fused",
    weight_decay=0.0,
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,
    eval_strategy="steps",
    eval_steps=50,
    per_device_eval_batch_size=8,
    save_steps=50,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized
    report_to=["none"],
)
DEMO = dict(
    model=str(HERE / "miniature" / "chat"),
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample" / "harbour.jsonl"),
    general=str(HERE / "sample" / "everyday.jsonl"),
    chats=str(HERE / "sample" / "chats.jsonl"),
    lora_r=32,  # the model is 128 wide
    lora_alpha=32,
    max_length=256,
    learning_rate=3e-3,  # few updates only: a small model bears, and needs, larger steps
    max_steps=110,  # twice through the harbour
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    bf16=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    eval_steps=20,
    save_steps=20,
    max_new_tokens=40,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
EMBEDDING_RATE = 0.1  # of the learning rate: a rare word has few gradients, and Adam makes each of them a full step
PANELS = {
    "cross-entropy per token of the domain": {"loss": "training", "eval_data_loss": "held out"},
    "of everything else, held out": {"eval_general_loss": "documents", "eval_chats_loss": "answers"},
}


@dataclass
class TrainArgs(data.DataArgs, SftArgs):
    """Flags of train.py and sft.py."""

    show_answers: int = arg(3, "held-out rows answered before and after, that are printed")
    ask: int = arg(64, "held-out questions answered before and after, for the share in chat form")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    reuse: bool = arg(False, "a finished run with the same arguments and data is taken instead")


@dataclass
class Args(TrainArgs):
    replay: float = arg(0.1, "share of the tokens from --general and --chats, equally; 0: the domain alone")
    embeddings: bool = arg(False, "train the embedding and lm_head, too, at a tenth of the learning rate (backend hf)")
    tokens: int = arg(0, "read so many tokens, repeated or not; 0: as many as the epochs have")


def rows_of(tokenizer, splits, template, args):
    """Training rows (ids, labels): the domain's pieces, and --replay rows of general text and of conversations."""
    documents = document_ids(tokenizer, splits["data"][0])
    print(f"domain: {packs.told(documents, args.max_length)}")
    rows = packs.texts(documents, args.max_length)
    general = packs.texts(document_ids(tokenizer, splits["general"][0]), args.max_length)
    chats = zip(*encode(tokenizer, splits["chats"][0], template), strict=True) if splits["chats"][0] else ()
    old = {"general": general, "chats": [row for row in chats if len(row[0]) <= args.max_length]}
    return rows + packs.replay(rows, old, args.replay, args.seed)


def check(args):
    """Stop where the flags ask for what cannot be."""
    if args.replay and not (args.general or args.chats):
        raise SystemExit(f"--replay {args.replay} needs --general or --chats: what is to be read again. Or --replay 0.")
    if args.embeddings and (args.backend == "unsloth" or device.sharded()):
        raise SystemExit("--embeddings is for backend hf on one GPU: its optimizer has two learning rates.")
    if args.embeddings:  # Liger's loss reads lm_head's weight past the module, and would miss what trains
        args.backend, args.given = "hf", sorted({*args.given, "use_liger_kernel"})


def load_model(args, config, path):
    """The frozen base with LoRA in all linear layers; with --embeddings the two matrices of words beside them."""
    from peft import LoraConfig

    from common.speed import lora, packing

    nf4 = NF4 if choose_quantization(args.quantization, path) else None
    model = models.load_base(path, args.backend, nf4, device.dtype(config), args.max_length)
    tied, words = model.config.get_text_config().tie_word_embeddings, {}
    if vars(args).get("embeddings"):  # tied: one matrix, trained once; LoRA in it could not be merged (tests)
        words = dict(modules_to_save=["embed_tokens"] + ([] if tied else ["lm_head"]), ensure_weight_tying=tied)
    lora_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        bias="none",
        **words,
    )
    model = models.attach(model, lora_config, args.backend, config)
    if words:  # they are trained in 32 bits; what goes through them stays as it was
        dtype = device.dtype(config)
        model.get_input_embeddings().register_forward_hook(lambda module, given, made: made.to(dtype))
        head = model.get_base_model().get_output_embeddings()
        head.register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype),))
    if args.fused_lora and args.backend == "hf":
        lora.fuse(model)
        config.liger_kernel_config = {"swiglu": False}  # part of fuse() already
    if args.packing:
        packing.attend_by_row(model, args.backend)
    return model


def optimizer_of(model, config):
    """AdamW with the matrices of words at EMBEDDING_RATE of the learning rate; None, the trainer's own, without them."""
    import torch

    groups = {"adapters": [], "words": []}
    for name, each in model.named_parameters():
        groups["words" if "modules_to_save" in name else "adapters"] += [each] if each.requires_grad else []
    if not groups["words"]:
        return None
    rates = {"adapters": config.learning_rate, "words": EMBEDDING_RATE * config.learning_rate}
    made = [dict(params=groups[name], lr=rate) for name, rate in rates.items()]
    how = dict(betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, weight_decay=config.weight_decay)
    return torch.optim.AdamW(made, fused=True, **how)


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    return run_method(__file__, args, argv, rows_of, check, load_model)


def run_method(script, args, argv, rows_of, check, load_model) -> Path:
    """Data, model, trainer, training, saving, showing: the same for train.py and sft.py."""
    if args.rehearse:
        return rehearse(script, argv)
    if args.estimate:
        more = packs.of_words(args, args.model)
        return fit.estimate(args, "max_length", lambda length, rows: dict(tokens=rows * length) | more)
    screen.heading("data")
    splits = data.load_splits(args)
    check(args)
    if not splits["data"][0] and "replay" in vars(args):
        raise SystemExit(f"no --data, and no {data.data_dir()}: give the domain's documents, a file or a folder.")
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from trl import SFTTrainer

    import measure
    from common import runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    template = template_of(tokenizer)
    rows = rows_of(tokenizer, splits, template, args)
    train_set = packs.sequences(rows, packs.pack([len(ids) for ids, _ in rows], args.max_length))
    held = measure.datasets_of(tokenizer, {name: each for name, (_, each) in splits.items()}, template, args)
    asked = splits["chats"][1][: args.ask]
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set, **packs.of_words(args, path))
    train_set = tokens.longest(train_set, config, args.longest_steps)
    if vars(args).get("tokens") and not args.longest_steps:
        mean = sum(tokens.lengths(train_set)) / len(train_set)
        per_step = mean * config.train_batch_size * config.gradient_accumulation_steps * config.world_size
        config.max_steps = math.ceil(args.tokens / per_step)

    run = runs.Run(args, config, train_set, draw=lambda _: run.plot("loss.png", PANELS, x="optimizer step"))
    if run.finished:
        return run.folder
    with run:
        model = load_model(args, config, path)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=held,
            data_collator=packs.collator(packing.collator(tokenizer, args.packing, args.backend)),
            optimizers=(optimizer_of(model, config), None),
        )
        screen.heading("before training")
        before = measure.look(model, tokenizer, held, asked, template, args)
        run.train(trainer)
        trainer.eval_dataset = next(iter(held.values()), None)  # what the run keeps for whoever checks an export
        run.save(trainer, tokenizer, **template)
        screen.heading("after training")
        after = measure.look(model, tokenizer, held, asked, template, args)
        run.note(before=before, after=after)
    measure.show(before, after, asked, args.show_answers)
    asked = command("infer.py", "--adapter", run.folder, "--compare")
    print("\n" + screen.text("Ask it yourself: {command}", command=asked))
    print(next_steps(run.folder))
    return run.folder


if __name__ == "__main__":
    main()
