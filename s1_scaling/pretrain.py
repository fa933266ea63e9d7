"""Pre-train the model of `train.py --demo` from nothing: 1.7 million parameters that can work sums out, but were never told to.

s1's claim is that reasoning is in a model from pre-training, and that few examples show it how to use it. Published models
small enough for three minutes on a laptop reason about nothing; so this one reads pupils' exercise books: problems of
domains.py in other sentences, each worked out line by line, and, as conversations, problems answered at once.

    L = - 1/n * sum over the n tokens that pupils write of log p(token | problem, tokens before)

Pupils hurry. At the first look most of them forget to carry (sums, clock), few slip elsewhere; in a quarter of the problems a
pupil looks once more, and then carefully, in the later parts behind "Wait, let me check.". There the books also ask in the tasks'
own sentences. No book has the form that is trained, and none has a question of the demo's test. So the model can work a task out,
hurriedly and carefully; asked in a conversation it says a bare answer at once, and that is mostly wrong. Fine-tuning shows it to think.

As miniature/ was made, in four parts:

    python pretrain.py --out FIRST
    python pretrain.py --start FIRST --max_steps 1400 --learning_rate 1.5e-3 --shown 0.4 --out SECOND
    python pretrain.py --start SECOND --max_steps 900 --learning_rate 1.5e-3 --shown 0.5 --domains sums units clock \\
        --again "Wait, let me check." --out THIRD
    python pretrain.py --start THIRD --max_steps 500 --learning_rate 1.5e-3 --shown 0.5 --domains sums units clock \\
        --again "Wait, let me check." --own_sentences true --out NEW
"""

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from common import device
from common.cli import arg, parse
from common.files import read_json, write_json
from domains import ASKED, MONTHS, TEST_WORDS, UNITS, WEEK, WORDS, clock, dates, letters, sums, units
from prompt import SYSTEM

HERE = Path(__file__).resolve().parent
DEFAULTS = dict(
    max_steps=1800,
    batch_size=6,  # rows per step
    learning_rate=2e-3,  # high for a model so small; cosine to a twentieth
    weight_decay=0.05,
)
SHAPE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 640
PROBLEMS = 6  # per row
SPOKEN = 0.15  # share of the rows that are conversations, answered at once
AGAIN = 0.25  # share of the worked problems with a second look, always a careful one
ONCE_MORE = "Once more, slowly."
SHOW = "Show your work."  # where a conversation asks for it, it has lines as a book; else the bare answer
SLIPS = {"sums": 0.8, "clock": 0.8, "letters": 0.2, "dates": 0.2, "units": 0.2}  # shares of hurried first looks
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAKERS = {"sums": sums, "dates": dates, "units": units, "clock": clock}
# How books ask. None of these sentences is one of domains.py's.
BOOKS = {
    "sums": ("{a} + {b} = ?", "What is {a} plus {b}?", "Sum of {a} and {b}?", "Find {a} and {b} together.",
             "Find what {a} and {b} make.", "The sum of {a} and {b} is wanted."),
    "letters": ("How many {letter} has {word}?", "Letter {letter} in {word}: how many?", "In {word}, count {letter}.",
                "How many times {letter} in {word}?", "{word}: how many {letter}?", 'Find the {letter} in "{word}".'),
    "dates": ("{n} days after {day}: which day is it?", "If today is {day}, which weekday comes in {n} days?",
              "A letter sent on {day} arrives {n} days later. On which day?", "From {day}, {n} days on. Which weekday?",
              "It is a {day}. If it takes {n} days, which day is it then?", "On a {day} a letter takes {n} days. When?"),
    "units": ("{a} {big} {b} {small} are how many {small}?", "Turn {a} {big} and {b} {small} into {small}.",
              "Write {a} {big} {b} {small} as {small}.", "{a} {big} and {b} {small}: how many {small} only?",
              "In {small}: {a} {big} and {b} {small}.", "How many {small} make {a} {big} and {b} {small}?"),
    "clock": ("What is the time {m} minutes after {time}?", "At {time} the bus leaves, {m} minutes long. The end?",
              "It is {time}, and it needs {m} minutes. When is it done?", "{time} and {m} minutes: what time?",
              "The train needs {m} minutes from {time}. When does it arrive?", "From {time}, {m} minutes. When?"),
}  # fmt: skip

TESTED = {json.loads(line)["question"] for line in (HERE / "sample_numbers" / "test.jsonl").open(encoding="utf-8")}


@dataclass
class Args:
    out: str = arg("miniature-new", "a new folder for the model")
    start: str | None = arg(None, "go on from the model in this folder, with other books")
    shown: float = arg(0.0, "share of the rows that are conversations in which the question is followed by SHOW")
    domains: list[str] = arg(list(BOOKS), "what the books are about")
    own_sentences: bool = arg(False, "books ask in the tasks' sentences, too, but no question of the demo's test")
    again: str = arg(ONCE_MORE, "what stands before a second look")
    seed: int = arg(3407, "of the weights and of the books")


def problem(draw, domains=tuple(BOOKS), own=False):
    """(domain, question as a book asks it, look) of a problem of level 1."""
    domain = draw.choice(domains)
    if domain == "letters":
        # Made-up words besides the known: a spelling is read off the word, not remembered. Never a test word.
        made = "".join(draw.choice("aabcdeeefgghiiklmnnooprrsttuwy") for _ in range(draw.randint(3, 9)))
        word = draw.choice(WORDS) if draw.random() < 0.5 or made in TEST_WORDS else made
        values, look = letters(draw, 1 if len(word) <= 5 else 2 if len(word) <= 8 else 3, [word])
    else:
        values, look = MAKERS[domain](draw, 1)
    asked = BOOKS[domain] + (sum(ASKED[domain][1].values(), ()) if own else ())
    question = draw.choice(asked).format(**values)
    return (domain, question, look) if question not in TESTED else problem(draw, domains, own)


def worked(draw, domains=tuple(BOOKS), again=ONCE_MORE, own=False):
    """(question, the pupil's lines) of one problem in a book."""
    domain, question, look = problem(draw, domains, own)
    lines, answer = look(draw.random() < SLIPS[domain])
    text = "\n".join([*lines, f"So it is {answer}."])
    if draw.random() < AGAIN:
        lines, answer = look(False)
        text = "\n".join([text, again, *lines, f"So it is {answer}."])
    return f"{question}\n", f"{text}\n\n"


def row(draw, shown=0.0, domains=tuple(BOOKS), again=ONCE_MORE, own=False):
    """Texts of one row; every second one is what a pupil writes, the others are given."""
    kind = draw.random()
    if kind >= SPOKEN + shown:
        return [text for _ in range(PROBLEMS) for text in worked(draw, domains, again, own)]
    texts, before = [], f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    for _ in range(PROBLEMS):
        if kind < SPOKEN:
            _, question, look = problem(draw, domains, own)
            said = f"Answer: {look(False)[1]}"
        else:
            question, said = (text.strip() for text in worked(draw, domains, again, own))
            question = f"{question} {SHOW}"
        texts += [f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", f"{said}<|im_end|>"]
        before = "\n"
    return texts


def build_tokenizer():
    """Byte pairs, digits and the letters of counted words one by one where a book spells them; other words are one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    # Every sentence with no word to count: those fall into pieces.
    fixed = [each for asked in ASKED.values() for split in asked[1].values() for each in split]
    fixed += [each for asked in BOOKS.values() for each in asked]
    names = [*WEEK, *MONTHS, *(name for unit in UNITS for name in unit[:2])]
    said = [SYSTEM, "system\n", "user\n", "assistant\n", "think\n", "answer\n", "Answer: ", "Final Answer:", ONCE_MORE]
    said += [
        "Wait, let me check.",
        "So it is ",
        ", write 5, carry 1; ",
        " occurs 2 times.\n",
        " minutes.\n",
        " x 7 + 5.\n",
    ]
    texts = [part.split("}")[-1] for text in fixed for part in text.split("{")] * 40
    texts += [f" {name}" for name in names] * 40 + [name for name in names] * 40 + said * 60
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    known = dict(special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, min_frequency=20, **known)
    bpe.train_from_iterator(texts, trainer)
    end, _, turn = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=1024, eos_token=turn, pad_token=end, unk_token=end
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def build(tokenizer, seed):
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE, **ids, vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config)


def batch(tokenizer, draw, count, *books):
    """`count` rows of `row(draw, *books)`: padded ids, and labels, -100 wherever no pupil writes."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [row(draw, *books) for _ in range(count)]
    parts = iter(tokenizer.backend_tokenizer.encode_batch_fast(sum(rows, []), add_special_tokens=False))
    ids, labels = [], []
    for texts in rows:
        made = [next(parts).ids for _ in texts]
        ids.append(torch.tensor(sum(made, [])))
        labels.append(torch.tensor(sum((part if n % 2 else [-100] * len(part) for n, part in enumerate(made)), [])))
    return pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(labels, True, -100)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    import torch

    from common.finite import stop

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, draw = build_tokenizer(), random.Random(args.seed)
    model = build(tokenizer, args.seed)
    if args.start:
        model.load_state_dict(type(model).from_pretrained(args.start, dtype=torch.float32).state_dict())
        draw = random.Random(f"{args.seed} again")
    model.to(where).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} tokens in the vocabulary, on {where}")
    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    began, seen, losses = time.time(), 0, []
    for step in range(args.max_steps):
        done = step / args.max_steps
        rate = min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        ids, labels = (
            each.to(where)
            for each in batch(
                tokenizer, draw, args.batch_size, args.shown, args.domains, args.again, args.own_sentences
            )
        )
        with torch.autocast(where.type, torch.bfloat16, enabled=device.has_bf16()):
            # padded on the right: causal attention needs no mask
            loss = model(ids, labels=labels, use_cache=False).loss
        loss.backward()
        if not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            stop("the gradient is not finite", step, folder=out)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        losses.append(loss.detach())
        if (step + 1) % max(1, args.max_steps // 20) == 0:
            losses = [sum(losses).item() / len(losses)]
            print(
                f"{time.time() - began:>6.0f} s  step {step + 1:>6,}  {seen:>11,} tokens  loss {losses.pop():.4f}",
                flush=True,
            )
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    arguments = {name: getattr(args, name) for name in sorted({*args.own_flags, *DEFAULTS} - {"out"})}
    facts = dict(device=device.name(), parameters=count, tokens=seen, seconds=round(time.time() - began))
    facts["arguments"] = (
        arguments | {"start": read_json(Path(args.start) / "pretrain.json")} if args.start else arguments
    )
    write_json(scratch / "pretrain.json", facts)
    for file in scratch.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    os.replace(scratch, out)
    print(json.dumps(facts))
    size = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
    print(f"saved: {out} ({size:.1f} MB of weights)")


if __name__ == "__main__":
    main()
