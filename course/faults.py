"""Faults on purpose: a recipe trained with one silent fault in it, and a report that does not say which.

A run that crashes teaches little: it says what is wrong. The faults here train to the end, save an adapter and answer.
Each is put in from outside: the folder's modules are imported in a process of their own, ONE function is replaced, and
train.main runs the demo, with r1_grpo's miniature as its model (1.7 million parameters, under a minute on one core). The
report shows what the recipes print anyway, beside the same numbers of three clean seeds. Say what is wrong, then look.

One of them:        python course/faults.py no_eos
The explanation:    python course/faults.py --reveal no_eos
Not knowing which:  python course/faults.py --blind, then python course/faults.py --reveal
The same for all:   python course/faults.py random --seed 7
Clean runs again:   python course/faults.py --clean
"""

import argparse
import base64
import html
import json
import os
import random
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "course"
MINIATURE = ROOT / "r1_grpo" / "miniature"
CLEAN = HERE / "faults_clean.json"  # numbers of the clean runs: recipe -> number -> one value per seed
SEEDS = (1, 2, 3)
ROWS = 200  # of alpaca: few, so that training on them and knowing others differ
SOURCES = ("number", "sum", "family")  # of domain_mix, as they stand in its file
FORM = re.compile(r"(\d+|(\d+ [+-] \d+ = -?\d+\n)+There are -?\d+ now\.)")  # of an answer in the rows
CUT = 132  # tokens: with its prompt an answer that has a check is longer, about half of them
NEW_TOKENS = 64  # an answer that has not ended by then never ends: right ones take about 20

# What each fault moves: a number of the report, and whether it goes above (>) or below (<) what clean seeds show.
NUMBERS = {
    "no_eos": ("tokens_until_end", ">"),
    "mask_all": ("trained_share", ">"),
    "wrong_template": ("form", "<"),
    "leak": ("gap", "<"),
    "pad_is_eos": ("tokens_until_end", ">"),
    "double_bos": ("tokens_per_row", ">"),
    "pissa_plain": ("saved_loss", ">"),
    "reward_hack": ("right", "<"),
    "lr_x10": ("heldout_after", ">"),
    "shuffled_labels": ("heldout_after", ">"),
    "no_shuffle": ("swing", ">"),
    "frozen": ("heldout_after", ">"),
    "grad_accum": ("last_loss", ">"),
    "truncated": ("ends_in_end_token", "<"),
    "rm_swapped": ("correlation_with_length", "<"),
}

# The demo of each recipe, on sums that the miniature knows: the flags, and the script.
SFT = ["--model", str(MINIATURE), "--eval_ratio", "0.2", "--show_mask", "0", "--max_new_tokens", str(NEW_TOKENS)]
RECIPES = {
    "alpaca": ("train", [*SFT, "--loss_on", "answer", "--max_steps", "150", "--per_device_train_batch_size", "8",
                         "--learning_rate", "5e-3", "--eval_steps", "50", "--save_steps", "150"]),
    "domain_mix": ("train", [*SFT, "--max_steps", "100", "--per_device_train_batch_size", "1", "--neftune_noise_alpha", "0",
                             "--gradient_accumulation_steps", "8", "--learning_rate", "5e-3", "--eval_steps", "50",
                             "--save_steps", "100"]),
    "r1_grpo": ("train", ["--model", str(MINIATURE), "--max_steps", "24", "--per_device_train_batch_size", "32",
                          "--eval_prompts", "60", "--probe_prompts", "0", "--follow_steps", "100", "--save_steps", "24",
                          "--max_completion_length", str(NEW_TOKENS)]),
    "rlhf_ppo": ("train_reward", ["--model", str(MINIATURE), "--learning_rate", "3e-3", "--epochs", "1",
                                  "--sft_samples", "8", "--max_new_tokens", str(NEW_TOKENS), "--eval_every", "100"]),
}  # fmt: skip


# -- the faults: each takes the recipe's modules and replaces one function


def no_eos(train):
    import prompt

    prompt.answer_ids = lambda tokenizer, rows: prompt.ids_of(tokenizer, [row["output"] for row in rows])


def mask_all(train):
    whole = train.encode
    train.encode = lambda tokenizer, rows, template, loss_on: whole(tokenizer, rows, template, "all")


def wrong_template(train):
    own = train.prompt_ids
    train.prompt_ids = lambda tokenizer, rows, template=None: own(tokenizer, rows, {})  # its chat template


def leak(train):
    splits = train.load_splits

    def load_splits(args):
        rows, held_out = splits(args)
        return rows + held_out, held_out

    train.load_splits = load_splits


def pad_is_eos(train):
    from common.speed import packing

    whole = packing.collator

    def collator(tokenizer, *args):
        collate = whole(tokenizer, *args)

        def masked(rows):
            batch = collate(rows)
            batch["labels"][batch["input_ids"] == tokenizer.eos_token_id] = -100
            return batch

        return masked

    packing.collator = collator


def double_bos(train):
    once = train.encode

    def encode(tokenizer, rows, template):
        ids, labels = once(tokenizer, rows, template)
        first = tokenizer.convert_tokens_to_ids("<|im_start|>")
        return [[first, *row] for row in ids], [[-100, *row] for row in labels]

    train.encode = encode


def pissa_plain(train):
    attach = train.models.attach

    def pissa(model, lora, backend, config):
        lora.init_lora_weights = "pissa"
        made = attach(model, lora, backend, config)
        made.peft_config["default"].init_lora_weights = True
        return made

    train.models.attach = pissa


def reward_hack(train):
    def correctness_reward_func(text, gold):
        return 2.0 * min(1, len(text) / 160)

    train.REWARDS = [*train.REWARDS[:-1], correctness_reward_func]


def lr_x10(train):
    made = train.trainer_config

    def trainer_config(args):
        config = made(args)
        config.learning_rate *= 10
        return config

    train.trainer_config = trainer_config


def shuffled_labels(train):
    splits = train.load_splits

    def load_splits(args):
        rows, held_out = splits(args)
        answers = [row["output"] for row in rows]
        random.Random(0).shuffle(answers)
        return [row | {"output": answer} for row, answer in zip(rows, answers, strict=True)], held_out

    train.load_splits = load_splits


def no_shuffle(train):
    import trl
    from torch.utils.data import SequentialSampler

    trl.SFTTrainer._get_train_sampler = lambda self, dataset=None: SequentialSampler(dataset or self.train_dataset)


def frozen(train):
    attach = train.models.attach

    def half(model, *args):
        made = attach(model, *args)
        for name, each in made.named_parameters():
            each.requires_grad_("lora_A" in name)
        return made

    train.models.attach = half


def grad_accum(train):
    import trl

    trl.SFTTrainer._get_num_items_in_batch = lambda *args, **how: None


def truncated(train):
    whole = train.tokens.tokenize

    def tokenize(rows, encode, max_length, name):
        def cut(batch):
            ids, labels = encode(batch)
            return [row[:CUT] for row in ids], [row[:CUT] for row in labels]

        return whole(rows, cut, max_length, name)

    train.tokens.tokenize = tokenize


def rm_swapped(train):
    splits = train.load_splits

    def load_splits(args):
        return [
            [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in part] for part in splits(args)
        ]

    train.load_splits = load_splits


# Fault -> recipe, the function, and where a person would have written it: file, and the text of the line that it undoes.
FAULTS = {
    "no_eos": ("alpaca", no_eos, "alpaca/prompt.py", "answer + [tokenizer.eos_token_id]"),
    "mask_all": ("alpaca", mask_all, "alpaca/prompt.py", "[[-100] * len(prompt) + answer"),
    "wrong_template": ("alpaca", wrong_template, "alpaca/train.py", "prompt_ids(tokenizer, shown, template)"),
    "leak": ("alpaca", leak, "alpaca/data.py", "return split_by(rows"),
    "pad_is_eos": ("alpaca", pad_is_eos, "common/speed/packing.py", "DataCollatorForSeq2Seq(tokenizer)"),
    "double_bos": ("domain_mix", double_bos, "domain_mix/prompt.py", "ids = [prompt + answer"),
    "pissa_plain": ("alpaca", pissa_plain, "alpaca/train.py", 'bias="none"'),
    "reward_hack": ("r1_grpo", reward_hack, "r1_grpo/rewards.py", 'PAYS["correctness"] if same('),
    "lr_x10": ("alpaca", lr_x10, "alpaca/train.py", "learning_rate=2e-3"),
    "shuffled_labels": ("alpaca", shuffled_labels, "alpaca/data.py", "return clean"),
    "no_shuffle": ("domain_mix", no_shuffle, "domain_mix/train.py", "train_dataset=train_set"),
    "frozen": ("alpaca", frozen, "common/models.py", "get_peft_model(model, lora)"),
    "grad_accum": ("domain_mix", grad_accum, "domain_mix/train.py", "trainer = SFTTrainer("),
    "truncated": ("alpaca", truncated, "common/tokens.py", "fit = [len(row) <= max_length"),
    "rm_swapped": ("rlhf_ppo", rm_swapped, "rlhf_ppo/train_reward.py", "margin = chosen - rejected"),
}  # fmt: skip


# -- what a run reads


def problems():
    """(question, "25 - 17 = 8", "8") of the 400 sums that r1_grpo's sample has."""
    lines = [line for name in ("train", "test") for line in
             (ROOT / "r1_grpo" / "sample" / f"{name}.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    for row in map(json.loads, lines):
        line, gold = row["answer"].split("\n#### ")
        yield row["question"], line, gold


def rows_for(recipe):
    """The rows of a recipe: alpaca's answers show the sum, and check it if it is one; domain_mix has three manners, one
    after the other as in a file put together from three; rlhf_ppo's pairs prefer an answer with its sum to a bare number.
    """
    made = []
    for number, (question, line, gold) in enumerate(problems()):
        a, sign, b = line.split(" = ")[0].split()
        end = f"There are {gold} now."
        if recipe == "alpaca" and number < ROWS:
            proof = f"{gold} - {b} = {a}\n" if sign == "+" else ""
            made.append(dict(instruction=question, input="", output=f"{line}\n{proof}{end}"))
        elif recipe == "domain_mix":
            more, less = (gold, b) if sign == "+" else (a, b)
            rest = int(more) - int(less)
            family = [f"{rest} + {less} = {more}", f"{less} + {rest} = {more}", f"{more} - {less} = {rest}"]
            family += [f"{more} - {rest} = {less}", end]
            manners = ("number", "Only the number.", gold), ("sum", "Show the sum.", f"{line}\n{end}")
            source, asked, answer = (*manners, ("family", "Show all four sums.", "\n".join(family)))[number % 3]
            made.append(dict(instruction=f"{question} {asked}", input="", output=answer, source=source))
        elif recipe == "rlhf_ppo":
            made.append(dict(prompt=question, chosen=f"{line}\n{end}", rejected=gold))
    return sorted(made, key=lambda row: SOURCES.index(row["source"])) if recipe == "domain_mix" else made


# -- the child: one recipe with one fault, trained and measured


def child(name, seed, folder, steps):
    """Train the recipe of fault `name`, or recipe `name` as it is, in this process; writes folder/result.json."""
    recipe, put = FAULTS[name][:2] if name in FAULTS else (name, None)
    script, flags = RECIPES[recipe]
    sys.path[0] = str(ROOT / recipe)
    train = __import__(script)
    data = [] if recipe == "r1_grpo" else ["--data", str(folder / "rows.jsonl")]
    if data:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_for(recipe)), "utf-8")
    else:
        flags = [*flags, "--data", str(ROOT / "r1_grpo" / "sample")]
    if put:
        put(train)
    run = folder / "run"
    short = ["--max_steps", str(steps), "--eval_steps", str(steps), "--save_steps", str(steps)] if steps else []
    argv = ["--demo", *flags, *data, *short, "--seed", str(seed), "--output_dir", str(run)]
    train.main(argv)
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    record = json.loads((run / "run.json").read_text("utf-8"))
    measure = {"r1_grpo": measure_grpo, "rlhf_ppo": measure_reward}.get(recipe, measure_sft)
    numbers, answers, shown = measure(train, run, logs, record)
    curves = {key: [[log["step"], log[key]] for log in logs if log.get(key) is not None] for key in CURVES[recipe]}
    result = dict(recipe=recipe, seed=seed, numbers=numbers, answers=answers, shown=shown, curves=curves)
    (folder / "result.json").write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf-8")


CURVES = {
    "alpaca": ("loss", "eval_loss", "grad_norm", "entropy"),
    "domain_mix": ("loss", "eval_loss", "grad_norm", "entropy"),
    "r1_grpo": ("reward", "accuracy", "completions/mean_length", "entropy"),
    "rlhf_ppo": ("loss", "accuracy", "margin", "grad_norm"),
}


def last_number(text):
    return (re.findall(r"\d+", text) or [None])[-1]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def measure_sft(train, folder, logs, record):
    """(numbers, three answers, a row as --show_mask prints it) of an SFT run, asked as infer.py asks: from its folder."""
    import contextlib
    import io
    import statistics

    from common import answers, models, tokens

    args = SimpleNamespace(backend="hf", quantization="none", **{
        key: record["arguments"][key] for key in ("data", "eval_ratio", "split_seed", "loss_on", "max_length")
        if key in record["arguments"]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        rows, held_out = train.load_splits(args)
        run = models.open_run(folder)
        model, tokenizer = models.load_run(run, args)
        more = {"loss_on": args.loss_on} if hasattr(args, "loss_on") else {}
        encode = partial(train.encode, tokenizer, template=train.TEMPLATE, **more)
        train_set = tokens.tokenize(rows, encode, args.max_length, "rows")
        eval_set = tokens.tokenize(held_out, encode, args.max_length, "rows")
        saved = answers.heldout_loss(model, eval_set, tokenizer.pad_token_id)
        asked = held_out[:: max(1, len(held_out) // 48)]
        how = dict(return_ids=True, backend="hf")
        made = answers.generate(model, tokenizer, train.prompt_ids(tokenizer, asked), NEW_TOKENS, 64, **how)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    right = [last_number(text) == last_number(row["output"]) for text, row in zip(texts, asked, strict=True)]
    ends = set(answers.end_tokens(model, tokenizer))
    train_logs = [log for log in logs if "loss" in log]
    last, after = train_logs[-10:], record["after"]
    sets = {"": after} if "loss" in after else {each: after[each] for each in after if each != "answers"}
    tokens_in = {each: sets[each]["tokens"] for each in sets}
    heldout = sum(sets[each]["loss"] * tokens_in[each] for each in sets) / sum(tokens_in.values())
    before = record["before"] if "" in sets else None
    numbers = {
        "rows": len(train_set),
        "tokens_per_row": mean(tokens.lengths(train_set)),
        "trained_share": tokens.trained_share(train_set),
        "ends_in_end_token": mean(ids[-1] in ends and label[-1] != -100 for ids, label in
                                  zip(train_set["input_ids"], train_set["labels"], strict=True)),
        "first_loss": train_logs[0]["loss"],
        "last_loss": mean(log["loss"] for log in last),
        "swing": statistics.pstdev(log["loss"] for log in train_logs[len(train_logs) // 3 :]),
        "gradient": mean(log["grad_norm"] for log in train_logs),
        "entropy": mean(log.get("entropy", 0) for log in last),
        "heldout_before": before["loss"] if before else mean(record["before"][each]["loss"] for each in sets),
        "heldout_after": heldout,
        **({f"heldout_{each}": sets[each]["loss"] for each in sets} if "" not in sets else {}),
        "gap": heldout - mean(log["loss"] for log in last),
        "saved_loss": saved["loss"],
        "tokens_until_end": mean(map(len, made)),
        "ended": mean(ids[-1] in ends for ids in made),
        "form": mean(bool(FORM.fullmatch(text)) for text in texts),
        "right": mean(right),
    }  # fmt: skip
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        tokens.show_mask(train_set, tokenizer, 1)
    pairs = [[row["instruction"], text] for row, text in zip(asked, texts, strict=True)][:3]
    return numbers, pairs, re.sub(r"\033\[\d+m", "", shown.getvalue()).strip()


def measure_grpo(train, folder, logs, record):
    """(numbers, three answers, the rewards' parts) of a GRPO run."""
    steps = [log for log in logs if "reward" in log]
    first, last = steps[:4], steps[-4:]
    numbers = {}
    for name, key in dict(reward="reward", length="completions/mean_length", cut_off="completions/clipped_ratio",
                          entropy="entropy", kl="kl").items():  # fmt: skip
        for when, part in (("first", first), ("last", last)):
            numbers[f"{name}_{when}"] = mean(log[key] for log in part if key in log)
    parts = sorted(key for key in steps[-1] if re.fullmatch(r"rewards/\w+/mean", key))
    for key in parts:
        numbers[key.split("/")[1].removesuffix("_reward_func")] = mean(log[key] for log in last)
    numbers |= {"right_before": record["before"]["strict"], "right": record["after"]["strict"]}
    numbers["tokens_until_end"] = record["after"]["tokens"]
    told = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()][-3:]
    lines = [f"{key.split('/')[1].removesuffix('_reward_func')}: {first[0][key]:.2f} -> {numbers[key.split('/')[1].removesuffix('_reward_func')]:.2f}"
             for key in parts]  # fmt: skip
    return numbers, [[each["question"], each["completions"][0]["text"]] for each in told], "\n".join(lines)


def measure_reward(train, folder, logs, record):
    """(numbers, three questions with the answer that scores higher first, a pair as it was read) of a reward model."""
    held = record["held_out"]
    steps = [log for log in logs if "loss" in log]
    numbers = {name: held[name] for name in ("accuracy", "margin", "loss", "correlation_with_length", "mean", "std")}
    numbers |= {"first_loss": steps[0]["loss"], "last_loss": mean(log["loss"] for log in steps[-4:])}
    numbers |= {"gradient": mean(log["grad_norm"] for log in steps)}
    numbers |= {"sft_mean": record["sft_mean"], "sft_std": record["sft_std"]}
    import contextlib
    import io

    from backbone import add_adapter, load_backbone
    from common import hub, models
    from scoring import reward_head, score_rows

    args = SimpleNamespace(**record["arguments"])
    with contextlib.redirect_stdout(io.StringIO()):
        _, held_out = train.load_splits(args)
        path = hub.resolve_model(args.model)
        tokenizer = models.load_tokenizer(path)
        pairs = train.encode_pairs(held_out[:3], tokenizer, args.max_prompt_length, args.max_length, "pairs")
        model = add_adapter(load_backbone(path, args), "reward", folder)
        model.set_adapter("reward", inference_mode=True)
        head = reward_head(folder, model.device)
        scores = score_rows(model, head, train.side_rows(pairs, tokenizer.eos_token_id), tokenizer.pad_token_id)
    shown = []
    for number, pair in enumerate(held_out[:3]):
        sides = [(scores[number], pair["chosen"]), (scores[number + 3], pair["rejected"])]
        said = [f"{score:+.2f}  {text}" for score, text in sorted(sides, reverse=True)]
        shown.append([pair["prompt"][-1]["content"], "\n".join(said)])
    return numbers, shown, ""


# -- the parent: what a person sees


# Number -> English, Chinese, how it is printed.
LABELS = {
    "rows": ("rows in training", "训练行数", "{:.0f}"),
    "tokens_per_row": ("tokens per row", "每行 token 数", "{:.1f}"),
    "trained_share": ("share of tokens trained on", "计入损失的 token 占比", "{:.1%}"),
    "ends_in_end_token": ("rows whose last token is the end token", "最后一个 token 是结束符的行", "{:.1%}"),
    "first_loss": ("training loss, first step", "训练损失，第一步", "{:.3f}"),
    "last_loss": ("training loss, last steps", "训练损失，最后几步", "{:.3f}"),
    "swing": ("training loss, spread over the last two thirds", "训练损失，后三分之二的波动", "{:.3f}"),
    "gradient": ("gradient norm, mean", "梯度范数，平均", "{:.3f}"),
    "entropy": ("entropy of the trained tokens, last steps", "训练 token 的熵，最后几步", "{:.3f}"),
    "heldout_before": ("held-out loss, before", "留出损失，训练前", "{:.3f}"),
    "heldout_after": ("held-out loss, after", "留出损失，训练后", "{:.3f}"),
    "heldout_number": ("held-out loss after, domain number", "留出损失，训练后，number 领域", "{:.3f}"),
    "heldout_sum": ("held-out loss after, domain sum", "留出损失，训练后，sum 领域", "{:.3f}"),
    "heldout_family": ("held-out loss after, domain family", "留出损失，训练后，family 领域", "{:.3f}"),
    "gap": ("held-out loss minus training loss", "留出损失减训练损失", "{:+.3f}"),
    "saved_loss": ("held-out loss of the saved run, loaded again", "保存后重新加载的留出损失", "{:.3f}"),
    "tokens_until_end": (f"tokens per answer, {NEW_TOKENS} at most", f"每个回答的 token 数，最多 {NEW_TOKENS}", "{:.1f}"),
    "ended": ("answers that came to their end", "自己结束的回答", "{:.0%}"),
    "form": ("answers in the form of the rows", "格式与训练数据一致的回答", "{:.0%}"),
    "right": ("right answers, held out", "答对的留出题", "{:.0%}"),
    "right_before": ("right answers before, held out", "训练前答对的留出题", "{:.0%}"),
    "reward_first": ("reward, first steps", "奖励，开头几步", "{:.2f}"),
    "reward_last": ("reward, last steps", "奖励，最后几步", "{:.2f}"),
    "correctness": ("part correctness, last steps", "其中 correctness，最后几步", "{:.2f}"),
    "int": ("part int, last steps", "其中 int，最后几步", "{:.2f}"),
    "strict_format": ("part strict_format, last steps", "其中 strict_format，最后几步", "{:.2f}"),
    "soft_format": ("part soft_format, last steps", "其中 soft_format，最后几步", "{:.2f}"),
    "xmlcount": ("part xmlcount, last steps", "其中 xmlcount，最后几步", "{:.2f}"),
    "length_first": ("tokens per completion, first steps", "每个回答的 token 数，开头几步", "{:.1f}"),
    "length_last": ("tokens per completion, last steps", "每个回答的 token 数，最后几步", "{:.1f}"),
    "cut_off_first": ("completions cut off, first steps", "被截断的回答，开头几步", "{:.0%}"),
    "cut_off_last": ("completions cut off, last steps", "被截断的回答，最后几步", "{:.0%}"),
    "entropy_first": ("entropy, first steps", "熵，开头几步", "{:.3f}"),
    "entropy_last": ("entropy, last steps", "熵，最后几步", "{:.3f}"),
    "kl_first": ("KL to the start, first steps", "与起点的 KL，开头几步", "{:.4f}"),
    "kl_last": ("KL to the start, last steps", "与起点的 KL，最后几步", "{:.4f}"),
    "accuracy": ("held-out pairs ranked as in the data", "排序与数据一致的留出偏好对", "{:.0%}"),
    "margin": ("margin, held out: score of chosen minus rejected", "留出集间隔：chosen 减 rejected 的分数", "{:.2f}"),
    "loss": ("held-out loss", "留出损失", "{:.3f}"),
    "correlation_with_length": ("correlation of score and length", "分数与长度的相关系数", "{:+.2f}"),
    "mean": ("mean score, held out", "平均分，留出集", "{:+.2f}"),
    "std": ("spread of the scores, held out", "分数的标准差，留出集", "{:.2f}"),
    "sft_mean": ("mean score of the SFT model's own answers", "SFT 模型自己回答的平均分", "{:+.2f}"),
    "sft_std": ("spread of these", "其标准差", "{:.2f}"),
}  # fmt: skip
CURVE_NAMES = {
    "loss": ("training loss", "训练损失"), "eval_loss": ("held-out loss", "留出损失"), "grad_norm": ("gradient norm", "梯度范数"),
    "entropy": ("entropy", "熵"), "reward": ("reward", "奖励"), "accuracy": ("accuracy", "准确率"),
    "completions/mean_length": ("tokens per completion", "每个回答的 token 数"), "margin": ("margin", "间隔"),
}  # fmt: skip
CHINESE = {
    "number": "数字", "this run": "这次运行", "three clean seeds": "三个正常种子", "A training row, as --show_mask prints it": "一行训练数据，与 --show_mask 打印的一样",
    "Each reward, first step -> last steps": "各项奖励，第一步 -> 最后几步", "Three held-out questions": "三个留出问题", "Curves": "曲线",
    "What is wrong? Write it down, then: {command}": "哪里错了？先写下来，再运行：{command}",
    "report: {file}": "报告：{file}", "one recipe, {recipe}, with one fault in it; {seconds:.0f} s": "配方 {recipe}，里面有一处错误；{seconds:.0f} 秒",
    "training {recipe} with one fault in it, under a minute on one core ...": "正在训练 {recipe}，里面有一处错误，单核不到一分钟……",
    "no such fault: {name}. --list names them.": "没有这个错误：{name}。--list 列出全部。",
    "no report yet: run one first, or name a fault.": "还没有报告：请先运行一个，或给出名字。",
    "the number: {label}: {here}; clean seeds {low} to {high}": "数字：{label}：{here}；正常种子 {low} 到 {high}",
    "where: {place}": "位置：{place}", "our checks printed in this run: {line}": "我们的检查在这次运行中打印了：{line}",
    "The grey lines are three clean seeds.": "灰线是三个正常种子。", "end of each curve": "曲线终点",
}  # fmt: skip


def language():
    """en or zh, as the locale says. The import is late: a child puts its recipe's folder, with a common/ of its own, first."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from common import screen

    return screen.language()


def text(english, **values):
    return (CHINESE.get(english, english) if language() == "zh" else english).format(**values)


def label(name):
    return LABELS[name][language() == "zh"]


def page(lang):
    return (HERE / ("faults.zh-CN.md" if lang == "zh" else "faults.md")).read_text("utf-8")


def titles(lang):
    """Fault -> its title, from the page's table."""
    found = re.findall(r"^\| ([^|]+?) \| `python course/faults\.py (\w+)` \|", page(lang), re.MULTILINE)
    return {name: title for title, name in found}


def explained(name, lang):
    """What the page folds away about a fault, as plain text."""
    found = re.search(rf"<details><summary>{name}</summary>\n\n(.*?)\n\n</details>", page(lang), re.DOTALL)[1]
    return re.sub(r"\*\*|`", "", found)


def place(name):
    """file:line: the line of the recipe that the fault undoes, found by its text."""
    file, wanted = FAULTS[name][2:4]
    for number, line in enumerate((ROOT / file).read_text("utf-8").splitlines(), 1):
        if wanted in line:
            return f"{file}:{number}: {line.strip()}"
    raise SystemExit(f"{file} has no line with {wanted!r} any more: change FAULTS['{name}'] in course/faults.py.")


def spread(recipe, name):
    """(lowest, highest) of a number over the clean seeds."""
    values = clean()["numbers"][recipe][name]
    return min(values), max(values)


def clean():
    return json.loads(CLEAN.read_text("utf-8"))


def moved(name, numbers):
    """Whether a fault's number lies on its side of the clean seeds, further out than these lie from each other."""
    number, side = NUMBERS[name]
    low, high = spread(FAULTS[name][0], number)
    room = max(high - low, 1e-4)  # the clean numbers are rounded
    return numbers[number] > high + room if side == ">" else numbers[number] < low - room


def spark(points, width=40):
    """A curve in one line of blocks."""
    values = [value for _, value in points]
    values = [values[at * len(values) // width] for at in range(width)] if len(values) > width else values
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low or 1))] for value in values)


def svg(points, others):
    """A curve over the grey ones of the clean seeds."""
    every = [point for curve in (points, *others) for point in curve]
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)

    def line(curve, colour, width):
        at = " ".join(f"{40 + 340 * (x - left) / (right - left or 1):.1f},{150 - 130 * (y - low) / (high - low or 1):.1f}"
                      for x, y in curve)  # fmt: skip
        return f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="{width}"/>'

    drawn = [line(other, "#bbb", 1.2) for other in others] + [line(points, "#06c", 2)]
    ends = f'<text x="36" y="24" text-anchor="end">{high:.3g}</text><text x="36" y="154" text-anchor="end">{low:.3g}</text>'
    steps = f'<text x="40" y="168">{left}</text><text x="380" y="168" text-anchor="end">{right}</text>'
    return f'<svg viewBox="0 0 390 172" role="img">{"".join(drawn)}{ends}{steps}</svg>'


def table(result):
    """Rows of the report: label, this run, clean range."""
    made = []
    for name, value in result["numbers"].items():
        how = LABELS[name][2]
        low, high = (how.format(each) for each in spread(result["recipe"], name))
        made.append((label(name), how.format(value), low if low == high else f"{low} … {high}"))
    return made


def shown_title(result):
    grpo = result["recipe"] == "r1_grpo"
    return text("Each reward, first step -> last steps" if grpo else "A training row, as --show_mask prints it")


def report(result, folder, seconds):
    """Print the report and write folder/report.html. Neither names the fault."""
    recipe, rows = result["recipe"], table(result)
    heads = [text(each) for each in ("number", "this run", "three clean seeds")]
    sizes = [max(wide(row[at]) for row in [heads, *rows]) for at in range(3)]
    print(f"\n{text('one recipe, {recipe}, with one fault in it; {seconds:.0f} s', recipe=recipe, seconds=seconds)}\n")
    for row in [heads, ["-" * size for size in sizes], *rows]:
        print("  ".join([padded(row[0], sizes[0]), *(" " * (size - wide(cell)) + cell for cell, size in
                                                    zip(row[1:], sizes[1:], strict=True))]))  # fmt: skip
    print(f"\n{text('Curves')}")
    names = {key: CURVE_NAMES[key][language() == "zh"] for key in result["curves"] if result["curves"][key]}
    for key, name in names.items():
        points = result["curves"][key]
        print(f"{padded(name, 24)} {points[0][1]:8.3f} {spark(points)} {points[-1][1]:.3f}")
    if result["shown"]:
        print(f"\n{shown_title(result)}\n{result['shown']}")
    print(f"\n{text('Three held-out questions')}")
    for question, answer in result["answers"]:
        print(f"  ? {question}\n    {answer.replace(chr(10), chr(10) + '    ')}")
    say = html.escape
    grey = clean()["curves"][recipe]
    cells = "".join("<tr>" + "".join(f"<td>{say(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    drawn = "".join(
        f"<figure><figcaption>{say(name)}</figcaption>{svg(result['curves'][key], [seed[key] for seed in grey if seed.get(key)])}</figure>"
        for key, name in names.items()
    )
    asked = "".join(
        f"<dt>{say(question)}</dt><dd><pre>{say(answer)}</pre></dd>" for question, answer in result["answers"]
    )
    shown = f"<h2>{say(shown_title(result))}</h2><pre>{say(result['shown'])}</pre>" if result["shown"] else ""
    body = (
        f"<h1>{say(text('one recipe, {recipe}, with one fault in it; {seconds:.0f} s', recipe=recipe, seconds=seconds))}</h1>"
        f"<table><tr>{''.join(f'<th>{say(head)}</th>' for head in heads)}</tr>{cells}</table>"
        f"<h2>{text('Curves')}</h2><p>{text('The grey lines are three clean seeds.')}</p><div>{drawn}</div>{shown}"
        f"<h2>{text('Three held-out questions')}</h2><dl>{asked}</dl>"
    )
    zh = "zh-CN" if language() == "zh" else "en"
    (folder / "report.html").write_text(
        f'<!doctype html><html lang="{zh}"><meta charset="utf-8">{STYLE}{body}</html>', "utf-8"
    )
    print(f"\n{text('report: {file}', file=folder / 'report.html')}")
    print(text("What is wrong? Write it down, then: {command}", command="python course/faults.py --reveal"))


STYLE = """<meta name="viewport" content="width=device-width"><title>faults</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.3rem}h2{font-size:1.1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f5f5f5;padding:.6rem;white-space:pre-wrap}
div{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}figure{margin:0}svg{width:100%}
svg text{font:11px sans-serif;fill:#555}dd{margin:0 0 .6rem 1rem}</style>"""


def wide(words):
    """Columns of a terminal: two for a Chinese character."""
    return sum(2 if ord(each) > 0x2E7F else 1 for each in words)


def padded(words, size):
    return words + " " * (size - wide(words))


def root():
    return Path(os.environ.get("OUTPUT_DIR", "outputs")).expanduser() / "faults"


def hidden(folder):
    """The fault of a report's folder: .answer holds it in base64, so that nobody reads it by accident."""
    return base64.b64decode((folder / ".answer").read_bytes()).decode()


def reports():
    """Folders of finished reports, the newest last."""
    return sorted(
        (file.parent for file in root().glob("*/report.html")), key=lambda each: (each / ".answer").stat().st_mtime
    )


def reveal(name):
    """Print what a fault is; with the numbers of its newest report, if there is one. name "": the newest report's."""
    made = reports()
    if not name and not made:
        raise SystemExit(text("no report yet: run one first, or name a fault."))
    name = known(name or hidden(made[-1]))
    print(f"{name}: {titles(language())[name]}\n\n{explained(name, language())}\n")
    print(text("where: {place}", place=place(name)))
    folder = next((each for each in reversed(made) if hidden(each) == name), None)
    if folder:
        number, how = NUMBERS[name][0], LABELS[NUMBERS[name][0]][2]
        here = json.loads((folder / "result.json").read_text("utf-8"))["numbers"][number]
        low, high = spread(FAULTS[name][0], number)
        told = {"label": label(number), "here": how.format(here), "low": how.format(low), "high": how.format(high)}
        print(text("the number: {label}: {here}; clean seeds {low} to {high}", **told))
        log = (folder / "train.log").read_text("utf-8")
        if name in SAID and (line := re.search(SAID[name], log, re.MULTILINE)):
            print(text("our checks printed in this run: {line}", line=line[0]))


# What the recipes' own checks print while a fault is trained: shown by --reveal.
SAID = {"frozen": r"^note: .*every lora_B is 0.*$"}


def known(name):
    if name not in FAULTS:
        raise SystemExit(text("no such fault: {name}. --list names them.", name=name))
    return name


def trained(name, seed, folder, steps=0):
    """The result of a child process: what it printed is in folder/train.log."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        name,
        "--seed",
        str(seed),
        "--child",
        str(folder.resolve()),
    ]
    more = ["--steps", str(steps)] if steps else []
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment = keep | {"OUTPUT_DIR": str(folder.resolve()), "LANG": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
    with open(folder / "train.log", "w", encoding="utf-8") as log:
        done = subprocess.run(command + more, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        end = (folder / "train.log").read_text("utf-8").strip().splitlines()[-1:]
        raise SystemExit(f"{folder / 'train.log'}: the run ended with exit code {done.returncode}: {' '.join(end)}")
    return json.loads((folder / "result.json").read_text("utf-8"))


def run(name, seed):
    """Train a fault and report. The folder is named by the time, and its train.log by nothing that gives it away."""
    folder, began = root() / time.strftime("%Y%m%d-%H%M%S"), time.time()
    print(
        text("training {recipe} with one fault in it, under a minute on one core ...", recipe=FAULTS[name][0]),
        flush=True,
    )
    result = trained(name, seed, folder)
    (folder / ".answer").write_bytes(base64.b64encode(name.encode()))
    report(result, folder, time.time() - began)
    return folder


def measure_clean(folder):
    """The clean runs of all recipes and seeds -> faults_clean.json."""
    made = {recipe: [trained(recipe, seed, folder / f"{recipe}-{seed}") for seed in SEEDS] for recipe in RECIPES}
    write_clean(made)


def write_clean(made):
    """made: recipe -> the results of its seeds."""
    cpu = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    facts = {
        "command": "python course/faults.py --clean",
        "hardware": f"{cpu[1] if cpu else 'CPU'}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "seeds": list(SEEDS),
        "numbers": {recipe: {name: [round(each["numbers"][name], 5) for each in results] for name in results[0]["numbers"]}
                    for recipe, results in made.items()},
        "curves": {recipe: [{key: thin(points) for key, points in each["curves"].items()} for each in results]
                   for recipe, results in made.items()},
    }  # fmt: skip
    lines = json.dumps(facts, indent=1)
    lines = re.sub(r"\[\s+([-\d.e]+),\s+([-\d.e]+)(?:,\s+([-\d.e]+))?\s+\]",
                   lambda found: "[" + ", ".join(filter(None, found.groups())) + "]", lines)  # fmt: skip
    CLEAN.write_text(lines + "\n", "utf-8")


def thin(points, most=20):
    """At most so many points of a curve, the last one among them, to three digits."""
    kept = points[:: -(-len(points) // most)]
    kept += points[-1:] if points and kept[-1] != points[-1] else []
    return [[x, float(f"{y:.3g}")] for x, y in kept]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", help="a fault of --list, or random (--seed N says which)")
    parser.add_argument("--list", action="store_true", help="names and titles, without saying what they do")
    parser.add_argument("--blind", action="store_true", help="one that was not seen yet, and not told which")
    parser.add_argument("--reveal", nargs="?", const="", metavar="NAME", help="explain a fault, or the newest report's")
    parser.add_argument(
        "--clean", action="store_true", help="measure the clean seeds again: faults_clean.json, minutes"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the training; with random, of the choice (default: 1)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.name, args.seed, args.child.resolve(), args.steps)
    if args.list:
        for name, title in titles(language()).items():
            print(padded(name, 18) + title)
        return None
    if args.reveal is not None:
        return reveal(args.reveal)
    if args.clean:
        return measure_clean(root() / f"clean-{time.strftime('%Y%m%d-%H%M%S')}")
    if args.blind:
        seen = {hidden(each) for each in reports()}
        return run(random.choice(sorted(set(FAULTS) - seen) or sorted(FAULTS)), args.seed)
    if args.name == "random":
        return run(random.Random(args.seed).choice(sorted(FAULTS)), 1)
    if not args.name:
        parser.error("name a fault, or --blind; --list names them")
    return run(known(args.name), args.seed)


if __name__ == "__main__":
    main()
