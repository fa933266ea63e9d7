"""Pre-train the model of `train.py --demo` from nothing: 1.7 million parameters that saw pupils' homework, most of it wrong.

GRPO needs a model that is right now and then. Published ones of this size are never right; so this one reads made-up word
problems and solutions as pupils write them: one forgets the carry or takes the smaller digit from the larger (Brown & Burton,
Diagnostic Models for Procedural Bugs in Basic Mathematical Skills, Cognitive Science 2, 1978), one counts the first number
itself and is off by one, one takes plus for minus. A quarter to a third of what it reads is right.

    L = - 1/n * sum over the solutions' n tokens of log p(token | problem, tokens before)

The likeliest answer is then wrong on most problems, and the right one is among the samples. Nothing tells the model which
pupil to believe: that is left to the rewards. It never reads a sentence of data.py's problems. Half of what it reads are
conversations, half lines of sums alone, which teach as much about digits in a fifth of the tokens.

As miniature/ was made:  python pretrain.py --out NEW
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
from common.files import write_json
from data import LEVELS, NAMES, THINGS, arithmetic
from prompt import FORM, SYSTEM, conversation, prompt_ids
from rewards import grade

DEFAULTS = dict(
    max_steps=1500,
    batch_size=12,  # rows per step: conversations of PROBLEMS problems and pages of LINES sums in turn
    learning_rate=2e-3,  # high for a model so small; cosine to a twentieth
    weight_decay=0.05,
)
SHAPE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 640
PROBLEMS = 4  # in a conversation: the system prompt, half of one problem's tokens, is then read once for four
LINES = 24  # of a page of sums, which is as long as a conversation
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Sentences: a beginning, what happens, and the question. None of them is one of data.py's.
BEGINNINGS = (
    "{name} keeps {a} {things} at home.", "{name} counts {a} {things}.", "{name} collects {a} {things} in a bag.",
    "{name} owns {a} {things}.", "{name} finds {a} {things} on the way.", "In a drawer {name} sees {a} {things}.",
    "On a shelf there are {a} {things}.", "A bag holds {a} {things}.", "A box of {name} holds {a} {things}.",
    "At first there were {a} {things}.",
)  # fmt: skip
EVENTS = {
    "+": (
        "Then another {b} arrive.",
        "{other} brings {b} new ones.",
        "{other} puts {b} beside them.",
        "A friend gives {name} {b} more.",
        "{name} then finds {b} in the garden.",
        "{name} buys another {b}.",
        "Later {b} others are added.",
        "Tomorrow {other} adds {b} of them.",
    ),
    "-": (
        "But {b} of them break.",
        "{name} breaks {b}.",
        "{name} gives {b} to {other}.",
        "{b} get lost.",
        "Later {b} of these are taken away.",
        "A friend takes {b}.",
        "{name} sold {b} today.",
        "{name} loses {b} of them, and {b} are gone.",
    ),
}
# The same in one sentence.
JOINED = {
    "+": (
        "{name} counts {a} {things}, then {b} others.",
        "{name} owns {a} {things} and adds {b} new ones.",
        "A bag holds {a} {things} and a box another {b}.",
        "Beside {a} {things}, {name} puts {b} more.",
    ),
    "-": (
        "Of these {a} {things}, {b} break.",
        "Of {a} {things} in a box, {name} takes {b}.",
        "{name} keeps {a} {things} but loses {b}.",
        "{name} finds {a} {things} but gives {b} to {other}.",
    ),
}
ASKED = (
    "How many {things} is that now?",
    "What is their number now?",
    "What number of {things} does {name} have?",
    "What is the number of the {things}?",
    "How many does that make?",
)
# How often a pupil is of which kind. Plus and minus differ: no single habit is the likeliest everywhere.
PUPILS = {
    "+": {"right": 0.24, "digits": 0.20, "off by one": 0.36, "other sign": 0.20},
    "-": {"right": 0.24, "digits": 0.06, "off by one": 0.50, "other sign": 0.20},
}


@dataclass
class Args:
    out: str = arg("miniature-new", "a new folder for the model")
    eval_problems: int = arg(200, "test problems of data.py, level 2, that the saved model answers")
    seed: int = arg(3407, "of the weights and of the homework")


def by_digits(a, sign, b):
    """a + b without the carry, a - b with the smaller digit taken from the larger, place by place."""
    digits = zip(f"{a:02}", f"{b:02}", strict=True)
    made = [(int(x) + int(y)) % 10 if sign == "+" else abs(int(x) - int(y)) for x, y in digits]
    return int("".join(map(str, made)))


def written(rng, a, sign, b, kinds):
    """What a pupil, drawn from `kinds`, writes for a sign b: the line and the result."""
    kind = rng.choices(list(kinds), kinds.values())[0]
    if kind == "other sign":
        sign = "-" if sign == "+" else "+"
    result = a + b if sign == "+" else a - b
    if kind == "digits":
        result = by_digits(a, sign, b)
    if kind == "off by one":
        result += -1 if sign == "+" else 1
    return f"{a} {sign} {b} = {result}", result


def numbers(rng):
    """(a, sign, b) of a sum of level 2."""
    low, high, _ = LEVELS[2]
    a, b, sign = rng.randint(low, high), rng.randint(low, high), rng.choice("+-")
    return (b + 1, sign, a) if sign == "-" and b >= a else (a, sign, b)


def homework(rng):
    """(question, solution in the form) of one problem."""
    a, sign, b = numbers(rng)
    name, other = rng.sample(NAMES, 2)
    text = rng.choice(JOINED[sign]) if rng.random() < 0.4 else f"{rng.choice(BEGINNINGS)} {rng.choice(EVENTS[sign])}"
    question = f"{text} {rng.choice(ASKED)}".format(name=name, other=other, things=rng.choice(THINGS), a=a, b=b)
    line, result = written(rng, a, sign, b, PUPILS[sign])
    return question, FORM.format(reasoning=line, answer=result)


def exercise(rng):
    """(what is given, what a pupil adds) of one line of sums: nobody takes a sign that is printed for another."""
    a, sign, b = numbers(rng)
    kinds = {kind: often for kind, often in PUPILS[sign].items() if kind != "other sign"}
    return f"{a} {sign} {b} =", f" {written(rng, a, sign, b, kinds)[1]}\n"


def build_tokenizer():
    """Byte pairs, digits one by one: any text has ids, and the words of the problems are one token each."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    rng, texts = random.Random(0), [SYSTEM, "system\n", "user\n", "assistant\n"] * 50
    for _ in range(5000):
        texts += homework(rng)
    for split in ("train", "test"):  # their words only: a word in pieces is harder to read
        texts += [row["question"] for row in arithmetic(200, 2, split)]
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    known = dict(special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, **known)
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


def rows_of(tokenizer, rng, count):
    """`count` rows, conversations and pages of sums in turn: padded ids, and labels, -100 wherever no pupil writes."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    opening = tokenizer.apply_chat_template(conversation({"question": ""})[:1], tokenize=False)
    rows = []  # of texts, of which every second is a pupil's
    for row in range(count):
        if row % 2:
            rows.append([text for _ in range(LINES) for text in exercise(rng)])
            continue
        rows.append([])
        for number in range(PROBLEMS):
            question, solution = homework(rng)
            before = "\n" if number else opening
            rows[-1] += [
                f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
                f"{solution}<|im_end|>",
            ]
    parts = iter(tokenizer.backend_tokenizer.encode_batch_fast(sum(rows, []), add_special_tokens=False))
    ids, labels = [], []
    for texts in rows:
        made = [next(parts).ids for _ in texts]
        ids.append(torch.tensor(sum(made, [])))
        labels.append(torch.tensor(sum((part if n % 2 else [-100] * len(part) for n, part in enumerate(made)), [])))
    return pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(labels, True, -100)


def examine(model, tokenizer, count, samples=8):
    """Shares of data.py's test problems of level 2 that are right: greedily, sampled once, in one of `samples` samples."""
    from common.answers import generate

    rows = [row | {"gold": row["answer"].split("#### ")[1]} for row in arithmetic(count, 2, "test", seed=1)]
    prompts = prompt_ids(tokenizer, rows)
    greedy = generate(model, tokenizer, prompts, 40, 256)
    many = [each for each in prompts for _ in range(samples)]
    sampled = generate(model, tokenizer, many, 40, 256, temperature=1.0, top_k=0, top_p=1.0)
    graded = [grade(text, row["gold"]) for text, row in zip(greedy, rows, strict=True)]
    golds = [row["gold"] for row in rows for _ in range(samples)]
    right = [grade(text, gold)["strict"] for text, gold in zip(sampled, golds, strict=True)]
    groups = [right[start : start + samples] for start in range(0, len(right), samples)]
    made = {f"greedy_{name}": sum(each[name] for each in graded) / count for name in graded[0]}
    return made | {"pass_at_1": sum(right) / len(right), f"pass_at_{samples}": sum(map(any, groups)) / count}, greedy


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    import torch

    from common.finite import stop

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, rng = build_tokenizer(), random.Random(args.seed)
    model = build(tokenizer, args.seed).to(where).train()
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
        ids, labels = (each.to(where) for each in rows_of(tokenizer, rng, args.batch_size))
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
    seconds = round(time.time() - began)

    model = model.to(torch.bfloat16)  # what is saved is what is examined
    scores, said = examine(model.float(), tokenizer, args.eval_problems)
    print(json.dumps(scores), said[0], sep="\n")
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    arguments = {name: getattr(args, name) for name in sorted({*args.own_flags, *DEFAULTS} - {"out"})}
    facts = dict(device=device.name(), parameters=count, tokens=seen, seconds=seconds, arguments=arguments)
    write_json(scratch / "pretrain.json", facts | {"test_problems_of_level_2": scores})
    for file in scratch.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    os.replace(scratch, out)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
    print(f"saved: {out} ({size:.1f} MB of weights)")


if __name__ == "__main__":
    main()
