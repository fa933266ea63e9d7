"""What each lesson needs of a GPU, and what it costs: writes costs.md and costs.zh-CN.md.

    fits     each train.py's own --estimate (common/speed/fit.py); no GPU, no data
    seconds  where bench/ or a folder's notebook measured that card; for other cards computed from that, and marked so
    money    seconds x steps / 3600 x price per hour

The prices are round numbers to show the sum with, not offers. Put in yours, in any currency.

Print:       python costs.py --price H100=2.4 4090=0.4
Chinese:     python costs.py --lang zh
Write both:  python costs.py --write
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CARDS = {"T4": 16, "3090": 24, "4090": 24, "A100": 80, "H100": 80, "H200": 141}  # GB of memory
PRICES = {"T4": 1, "3090": 2, "4090": 3, "A100": 8, "H100": 12, "H200": 16}  # per hour: examples
# Dense TFLOPS of 16-bit tensor cores that add in 32 bits, and GB/s of memory, from NVIDIA's data sheets (T4, A100 80 GB SXM,
# H100 SXM, H200 SXM) and architecture papers (GA102 for the 3090, Ada for the 4090).
SPECS = {"T4": (65, 320), "3090": (71, 936), "4090": (165, 1008), "A100": (312, 2039), "H100": (989, 3350), "H200": (989, 4800)}  # fmt: skip
REACHED = 0.64, 0.7  # the best share of each that was measured here: 64 packed rows of alpaca, vLLM's sampling
SLOWER = 3  # the upper end: checkpointing, 4 bits, a slower host, cards that reach less of their peak
# Work of a step: TFLOP = 4 x parameters x tokens (LoRA leaves the weights' own gradients out; RL and checkpointing add
# forward passes), and GB of weights that are read while it samples, token by token.
WORK = {
    "alpaca": (47, 0),  # 8 x 193 tokens
    "medical": (38, 0),  # 8 x 158
    "domain_mix": (47, 0),  # as alpaca
    "rlhf_ppo": (176, 128),  # 64 x 256 tokens, 4 epochs and 3 forward passes; 128 tokens of a 0.5B model
    "r1_grpo": (894, 7782),  # 24 x 612 tokens, 4 + 4; 512 tokens of a 7B model
    "s1_scaling": (53, 0),  # 16 x 108
    "vl_insurance": (195, 0),  # 8 x 1,102 in the language model, four times as many patches in the encoder
}
NO_VLLM = ("T4", "3090", "4090")  # both copies of a 7B model do not fit, says r1_grpo/train.py --estimate
# Lesson: steps of a run as the plans of this course have it, and why so many.
STEPS = {
    "alpaca": (60, "--max_steps 60"),
    "medical": (2000, "--max_steps 2000"),
    "domain_mix": (675, "--plan small: 1,800 rows x 3 / 8"),
    "rlhf_ppo": (100, "--updates 100"),
    "r1_grpo": (250, "--max_steps 250"),
    "s1_scaling": (315, "1,000 traces x 5 / 16"),
    "vl_insurance": (30, "--max_steps 30"),
}
FLAGS = {"T4": ["--backend", "unsloth"]}  # what --backend auto takes there: attention by row needs Ampere


def estimate(lesson, card):
    """A row of `train.py --estimate` for a card: (fits, GB, how, the flags that would make it fit); None: no formula."""
    if (lesson, card) == ("rlhf_ppo", "T4"):
        return None  # without bfloat16 its backbone is in float32, which --estimate does not count
    command = [sys.executable, str(ROOT / lesson / "train.py"), "--estimate", *FLAGS.get(card, [])]
    published = os.environ | {"MODELS_DIR": os.devnull}  # the published shapes, whatever lies on this machine
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=published)
    if done.returncode:
        raise SystemExit(f"{lesson}/train.py --estimate: {done.stderr.strip() or done.stdout.strip()}")
    size = min(CARDS[card], 80)  # --estimate ends at 80: what fits there fits in more
    for line in done.stdout.splitlines():
        row = re.match(rf" *{size} +(yes|no) +([\d.]+) .*?   (\S+-bit, .*?)(?:; fits with (.*)|; .*)?$", line)
        if row:
            return row[1] == "yes", row[2], row[3], row[4]
    raise SystemExit(f"{lesson}/train.py --estimate printed no row for {size} GB.")


def read(name):
    text = (RESULTS / name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def rebuilt(name):
    """Seconds per step on an H100, of bench/RESULTS.md's table "old and new code": rows per step / rows/s after."""
    row = re.search(
        rf"^\| {re.escape(name)} \| (\d+) \| [^|]* \| ([\d.]+) \|$",
        (ROOT / "bench/RESULTS.md").read_text("utf-8"),
        re.M,
    )
    return int(row[1]) / float(row[2])


def computed(lesson, seconds, base, card):
    """(least, most) seconds per step on `card`, from those measured on `base`: what is neither arithmetic nor reading of
    weights is waiting for the host and stays; the others go by the cards' specs (a roofline)."""
    work = WORK[lesson]
    ideal = [sum(part / share / spec for part, share, spec in zip(work, REACHED, SPECS[each], strict=True)) for each in (base, card)]  # fmt: skip
    least = max(0.0, seconds - ideal[0]) + ideal[1]
    return least, SLOWER * least


def measured():
    """[(lesson, card, seconds per step, what was measured, file), ...]; the first of a lesson and card is what costs."""
    sft = {row["name"]: row for row in read("sft_speed.json")}
    traces = re.search(r"^\| s1_scaling, the sample.*\| ([\d., ]+) \|$", (ROOT / "bench/RESULTS.md").read_text("utf-8"), re.M)  # fmt: skip
    traces = [float(each) for each in traces[1].split(", ")]
    grpo, asleep = [], False  # the first update warms up; an engine that sleeps while training is another setting
    for row in read("grpo_speed.jsonl"):
        asleep = row.get("vllm_enable_sleep_mode", False) if row["what"] == "start" else asleep
        if row["what"] == "update" and row["update"] > 1 and not asleep:
            grpo.append(row)
    made = []

    def add(lesson, card, seconds, what, file):
        made.append((lesson, card, seconds, what, file))

    house, speed = "bench/RESULTS.md", "bench/results/sft_speed.json"
    add("alpaca", "H100", rebuilt("alpaca, defaults"), "8 rows", house)
    add("alpaca", "H100", rebuilt("alpaca, `course.yaml` (Unsloth)"), "8 rows, course.yaml", house)
    add("medical", "H100", rebuilt("medical, defaults"), "8 rows", house)
    add("domain_mix", "H100", rebuilt("domain_mix, defaults"), "8 rows", house)
    add("s1_scaling", "H100", 16 * len(traces) / sum(traces), "16 short traces", house)
    for name, what in (("same_updates", "8 rows"), ("course", "8 rows, course.yaml")):
        add("alpaca", "H200", sft[name]["rows_a_step"] / sft[name]["samples_per_s"], what, speed)
    for card in ("H100", "H200"):
        for part, what in (("ours", "24 x 512 tokens, vLLM"), ("hf", "24 x 512 tokens, our decoder")):
            rows = [
                row["seconds"] for row in grpo
                if row["part"] == part and card in row["gpu"] and row.get("checkpointing", True)
            ]  # fmt: skip
            if rows:
                add("r1_grpo", card, sum(rows) / len(rows), what, "bench/results/grpo_speed.jsonl")
    ppo = min(
        (row for row in read("ppo_vs_trl.json") if (row["side"], row["shape"]) == ("ours", "0.5b")),
        key=lambda row: row["s_total"],
    )
    add("rlhf_ppo", "H200", ppo["s_total"], "64 answers of 128 tokens", "bench/results/ppo_vs_trl.json")
    step = next(row for row in read("vl_step.jsonl") if (row["arm"], row["row"]) == ("ours", "8 photos"))
    add("vl_insurance", "H100", step["s_per_step"], "8 photos", "bench/results/vl_step.jsonl")
    vl = {row["name"]: row for row in read("vl_speed.json")}
    for name, what in (("hf_16bit", "8 photos, stock TRL in 16 bits"), ("unsloth_4bit", "8 photos, course.yaml")):
        add("vl_insurance", "H200", vl[name]["seconds_a_step"], what, "bench/results/vl_speed.json")
    return made


TEXTS = {
    "en": {
        "top": """# What the lessons need and cost

[中文](costs.zh-CN.md) · [the path](README.md) · written by `python course/costs.py --write`

math_demos and every `--demo` need no GPU, and deploy needs one only for `merged_4bit` and vLLM. The rest, with each folder's
defaults (7B; rlhf_ppo 0.5B, vl_insurance 3B):
""",
        "fits": "## Does it fit?\n\n**Computed**, by each `train.py --estimate`: an upper bound, with each row as long as the limit allows. "
        "T4: with `--backend unsloth`,\nwhich is what `--backend auto` takes before Ampere; rlhf_ppo computes in float32 there, which --estimate does not count.\n",
        "head": "| lesson | T4, 16 GB | 3090 and 4090, 24 GB | A100 and H100, 80 GB |",
        "bits": "{} GB: {}",
        "no": "not with the defaults ({} GB): add `{}`",
        "never": "no",
        "how": lambda how: re.sub(r"\b1 rows", "1 row", how),
        "seconds": "## Seconds per step\n\n**Measured** on H100 and H200, first steps left out; a dash: nobody measured it. 7B, 3B and 0.5B "
        "shapes with random weights, which\nchanges what is learned and not how long a step takes.\n\n"
        "**Computed, nobody ran it:** cells with ≈. Of the measured step the arithmetic is scaled by the cards' dense 16-bit TFLOPS "
        "(T4 65,\n3090 71, 4090 165, A100 312, H100 and H200 989), the reading of weights while sampling by their GB/s (320, 936, 1008, "
        "2039, 3350, 4800;\nNVIDIA's data sheets and architecture papers); the rest, waiting for the host, stays. The upper end is "
        "three times that: checkpointing,\n4 bits, a slower host. A check from outside: Unsloth's public notebook of Qwen2.5-7B on alpaca shows "
        "60 steps in 7 min 27 s on a T4, 7.5 s per step.\n",
        "head2": "| lesson | one step | " + " | ".join(CARDS) + " | source |",
        "money": "## Money per lesson\n\n**Computed**: seconds per step × steps / 3600 × price per hour, for the first row of each lesson above that\nhas a figure for the card; ≈ where the seconds are computed. "
        "Loading the model and evaluations come on top. **The prices are examples, not offers**; put in yours: "
        "`python course/costs.py --price H100=2.4`.\n",
        "head3": "| lesson | steps | " + " | ".join(f"{card} at {price}" for card, price in PRICES.items()) + " |",
        "notes": """
**What is missing and why.** T4, 3090, 4090 and A100 were not at hand, so these columns are computed. s1_scaling was timed on short
made-up traces only: a run on s1K's traces, up to 20,000 tokens each, takes far longer per step. One figure of a 4090 is known:
the old course logged 30 steps of its photo lesson in 26 s, with photos shrunk to 512 pixels ([vl_insurance](../vl_insurance/RESULTS.md#earlier-measurements)).

**Your own figure** in a minute: start the run with its price, `python medical/train.py --data DIR --price_per_hour 2`. Each line
that it prints says how long the rest will take and what it will cost; Ctrl-C leaves a checkpoint.
""",
    },
    "zh": {
        "top": """# 每课需要什么显卡，花多少钱

[English](costs.md) · [学习路线](README.zh-CN.md) · 由 `python course/costs.py --write` 生成

math_demos 和所有 `--demo` 都不需要 GPU；deploy 只有 `merged_4bit` 和 vLLM 需要。其余各课按文件夹的默认设置（7B；rlhf_ppo 为 0.5B，
vl_insurance 为 3B）：
""",
        "fits": "## 装得下吗\n\n**计算值**，出自各个 `train.py --estimate`：按每行都达到长度上限计算，是上界。T4 一列加 `--backend unsloth`，\n"
        "Ampere 之前的显卡上 `--backend auto` 选的就是它；rlhf_ppo 在 T4 上用 float32 计算，--estimate 不估这种情况。\n",
        "head": "| 课 | T4，16 GB | 3090 与 4090，24 GB | A100 与 H100，80 GB |",
        "bits": "{} GB：{}",
        "no": "默认设置装不下（{} GB）：加 `{}`",
        "never": "装不下",
        "how": lambda how: (
            re.sub(r"(\d+) rows at once", r"一次 \1 行", how)
            .replace("no checkpointing", "无梯度检查点")
            .replace("checkpointing", "梯度检查点")
            .replace("-bit", " 位")
            .replace(", ", "，")
        ),
        "seconds": "## 每步秒数\n\nH100、H200 上的**实测值**，不含最初几步；横线表示没有测过。7B、3B、0.5B 的形状，随机权重：这影响学到什么，不影响一步多久。\n\n"
        "**计算值，没有人跑过**：带 ≈ 的格子。实测一步中，运算部分按各卡稠密 16 位 TFLOPS 换算（T4 65，3090 71，4090 165，A100 312，H100 与 H200 989），\n"
        "采样时读权重的部分按显存带宽 GB/s 换算（320、936、1008、2039、3350、4800；出自 NVIDIA 的数据手册和架构白皮书）；其余是等主机，不变。\n"
        "上限取三倍：梯度检查点、4 位、主机较慢。外部对照：Unsloth 公开的 Qwen2.5-7B alpaca 笔记本在 T4 上 60 步用了 7 分 27 秒，每步 7.5 秒。\n",
        "head2": "| 课 | 一步 | " + " | ".join(CARDS) + " | 出处 |",
        "money": "## 每课费用\n\n**计算值**：每步秒数 × 步数 / 3600 × 每小时价格，取上表每课第一个有数字的行；秒数是计算值的，也带 ≈。加载模型和评估另算。**价格只是举例，不是报价**，\n"
        "换成你自己的：`python course/costs.py --price H100=2.4`。\n",
        "head3": "| 课 | 步数 | " + " | ".join(f"{card}，{price}/时" for card, price in PRICES.items()) + " |",
        "notes": """
**缺什么，为什么。** 手头没有 T4、3090、4090、A100，所以这几列是计算值。s1_scaling 只在生成的短推理过程上计过时：s1K 的推理过程每条可达
20,000 token，每步要久得多。4090 只有一个数字：旧课程的日志里，看图课 30 步用了 26 秒，照片缩到 512 像素
（[vl_insurance](../vl_insurance/RESULTS.zh-CN.md#早先的测量)）。

**一分钟得到你自己的数字**：启动训练时给出价格，`python medical/train.py --data DIR --price_per_hour 2`。每一行都会说还要多久、
还要花多少钱；Ctrl-C 会留下检查点。
""",
    },
}
ZH = {
    "8 rows": "8 行",
    "8 rows, course.yaml": "8 行，course.yaml",
    "24 x 512 tokens, vLLM": "24 × 512 token，vLLM",
    "24 x 512 tokens, our decoder": "24 × 512 token，自带解码器",
    "64 answers of 128 tokens": "64 个回答，各 128 token",
    "8 photos, 16-bit": "8 张照片，16 位",
    "8 photos, course.yaml": "8 张照片，course.yaml",
    "16 short traces": "16 条短推理过程",
    "--plan small: 1,800 rows x 3 / 8": "--plan small：1,800 行 × 3 / 8",
    "1,000 traces x 5 / 16": "1,000 条 × 5 / 16",
}


def table(header, rows):
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *("| " + " | ".join(row) + " |" for row in rows)])


def about(least, most):
    """A range as it is shown, two digits each: ≈ 1.3–3.9."""
    digits = lambda value: f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"  # noqa: E731
    return f"≈ {digits(least)}–{digits(most)}"


def page(lang, prices, fitted, times):
    """The page as Markdown. fitted: (lesson, card) -> estimate(); times: measured()."""
    say, own = TEXTS[lang], (lambda text: ZH.get(text, text)) if lang == "zh" else str

    def cell(found):
        if found is None:
            return "–"
        fits, size, how, flags = found
        if fits:
            return say["bits"].format(size, say["how"](how))
        return say["no"].format(size, flags) if flags else say["never"]

    fits = [[lesson, *(cell(fitted[lesson, card]) for card in ("T4", "3090", "A100"))] for lesson in STEPS]
    seconds, money = [], []
    for lesson, (steps, why) in STEPS.items():
        mine, first = [row for row in times if row[0] == lesson], {}
        for what in dict.fromkeys(row[3] for row in mine):
            found = {card: (value, file) for _, card, value, kind, file in mine if kind == what}
            files = dict.fromkeys(file for _, file in found.values())
            base = next(iter(found))
            known = {card: (value, value) for card, (value, _) in found.items()}
            for card in ("T4", "3090", "4090", "A100"):
                if fitted[lesson, {"4090": "3090"}.get(card, card)] and not ("vLLM" in what and card in NO_VLLM):
                    known[card] = computed(lesson, found[base][0], base, card)
            shown = [
                f"{found[card][0]:.2f}" if card in found else about(*known[card]) if card in known else "–"
                for card in CARDS
            ]
            seconds.append([lesson, own(what), *shown, ", ".join(f"[{file}](../{file})" for file in files)])
            first = known | first
        cost = {card: [value * steps / 3600 * prices[card] for value in ends] for card, ends in first.items()}
        paid = [
            "–"
            if card not in cost
            else f"{cost[card][0]:.2f}"
            if cost[card][0] == cost[card][1]
            else about(*cost[card])
            for card in CARDS
        ]
        money.append([lesson, f"{steps:,} ({own(why)})" if lang == "en" else f"{steps:,}（{own(why)}）", *paid])
    head3 = say["head3"]
    for card, price in prices.items():
        head3 = re.sub(rf"({card}(?: at |，)){PRICES[card]}\b", rf"\g<1>{price:g}", head3)
    return "\n".join(
        [
            say["top"],
            say["fits"],
            table(say["head"], fits) + "\n",
            say["seconds"],
            table(say["head2"], seconds) + "\n",
            say["money"],
            table(head3, money),
            say["notes"],
        ]
    )


def pages(prices=PRICES):
    """{file name: text} of both languages."""
    fitted = {(lesson, card): estimate(lesson, card) for lesson in STEPS for card in ("T4", "3090", "A100")}
    times = measured()
    return {f"costs{end}.md": page(lang, prices, fitted, times) for lang, end in (("en", ""), ("zh", ".zh-CN"))}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--price", nargs="+", default=[], metavar="CARD=N", help=f"per hour, of {', '.join(CARDS)}")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="of what is printed")
    parser.add_argument(
        "--write", action="store_true", help="write costs.md and costs.zh-CN.md, with the example prices"
    )
    args = parser.parse_args(argv)
    prices = dict(PRICES)
    for given in args.price:
        card, sign, number = given.partition("=")
        if card not in CARDS or not sign or not re.fullmatch(r"\d+(\.\d+)?", number):
            raise SystemExit(f"--price {given}: expected CARD=NUMBER, with a card of {', '.join(CARDS)}.")
        prices[card] = float(number)
    if args.write and args.price:
        raise SystemExit("--write writes the pages with the example prices: leave --price out.")
    made = pages(prices)
    if args.write:
        for name, text in made.items():
            (Path(__file__).parent / name).write_text(text, "utf-8")
            print(f"course/{name}")
    else:
        print(made["costs.md" if args.lang == "en" else "costs.zh-CN.md"], end="")


if __name__ == "__main__":
    main()
