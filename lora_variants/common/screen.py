# Generated from common/screen.py: edit that file, then run `make sync`.
"""What a run says while it works: headings, a line per logged step, named bars; in Chinese where the locale says so.

English stands in the code, as what `text` is asked for; the table below has the Chinese, with the same {names} in it.
Imports nothing heavy.
"""

import locale
import os
import shutil
import sys
import time
import unicodedata
from datetime import timedelta

BEGAN = time.time()
if not (sys.stderr and sys.stderr.isatty()) or os.environ.get("RANK", "0") != "0":
    os.environ.setdefault(
        "TQDM_DISABLE", "1"
    )  # a bar in a log file is one line of a thousand \r; the libraries' bars too

# Of a logged step's metrics those that are shown, in this order. Where a reward is, the loss says nothing.
COLUMNS = {
    "reward": "reward {v:5.2f}", "score": "score {v:5.2f}", "loss": "loss {v:6.3f}", "accuracy": "accuracy {v:3.0%}",
    "completions/mean_length": "length {v:4.0f}", "length": "length {v:4.0f}", "kl": "KL {v:6.3f}",
    "frac_reward_zero_std": "dead groups {v:4.0%}", "grad_norm": "gradient {v:5.2f}",
    "eval_loss": "held-out loss {v:6.3f}", "eval_accuracy": "held-out accuracy {v:3.0%}",
}  # fmt: skip


def language() -> str:
    """en or zh, as the locale says."""
    said = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    said = said or locale.getlocale()[0] or ""  # Windows sets no variable
    return "zh" if said.lower().startswith(("zh", "chinese")) else "en"


def text(english: str, **values) -> str:
    """A sentence in the person's language, its {names} filled with values."""
    return (CHINESE.get(english, english) if language() == "zh" else english).format(**values)


def heading(english: str, **values):
    """The title of what begins now, with the seconds since the script was started."""
    print(f"\n== {text(english, **values)} ({time.time() - BEGAN:.0f} s)", flush=True)


def bar(english: str, total: int, unit: str, rows=None, start=0, hidden=False, **values):
    """A named progress bar of tqdm's, on a terminal only. unit: what `total` counts; tokens where rows differ in length.

    rows: what it goes through, if it shall count them itself. start: what was done before.
    """
    from tqdm import tqdm

    how = dict(initial=start, unit=unit, unit_scale=unit == " tokens", dynamic_ncols=True, leave=False)
    return tqdm(rows, text(english, **values), total, disable=hidden or "TQDM_DISABLE" in os.environ, **how)


class Steps:
    """What training says: a line for each log and, on a terminal, a bar below the lines.

    english: the bar's name. total, start: optimizer steps of the run, and those done before. price: of an hour.
    """

    def __init__(self, english, total, start=0, price=None):
        self.total, self.start, self.price, self.began = total, start, price, time.time()
        self.bar, self.inner = bar(english, total, " steps", start=start), None

    def log(self, step: int, metrics: dict, speed=None):
        """Print the line of one step. speed: tokens per second, where it is known."""
        self.bar.update(step - self.bar.n)
        self.began = self.began if step > self.start else time.time()  # a first evaluation is no step
        hidden = ("loss", "grad_norm") if {"reward", "score"} & set(metrics) else ()
        names = [name for name in COLUMNS if metrics.get(name) is not None and name not in hidden]
        if not names:
            return
        columns, ends = [text(COLUMNS[name], v=metrics[name]) for name in names], []
        if speed:
            ends.append(text("{v:6,.0f} tok/s", v=speed))
        if step > self.start:
            left = round((time.time() - self.began) / (step - self.start) * (self.total - step))
            clock = str(timedelta(seconds=left)).removeprefix("0:")
            more = "{left} left, {cost:.2f} at {price} per hour" if self.price else "{left} left"
            ends.append(text(more, left=clock, cost=left / 3600 * (self.price or 0), price=self.price))
        at = text("step {at}/{total}", at=f"{step:>{len(str(self.total))}}", total=self.total)
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        while len(columns) > 1 and width("  ".join([at, *columns, *ends])) >= room:
            columns.pop()
        self.bar.write("  ".join([at, *columns, *ends]))
        sys.stdout.flush()

    def measure(self, total: int):
        """One more of `total` held-out batches is done."""
        self.inner = self.inner or bar("held-out loss", total, " batches")
        self.inner.update()
        if self.inner.n >= total:
            self.inner = self.inner.close()

    def close(self):
        self.bar.close()


def label(english: str) -> str:
    """A name before a text, twelve columns wide."""
    return text(english) + ":" + " " * (11 - width(text(english)))


def width(line: str) -> int:
    """Columns that a line takes in a terminal: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in line)


# English -> Chinese. Values, flags, commands and paths stay as they are.
CHINESE = {
    # headings and bars
    "data": "数据", "before training": "训练之前", "training": "训练", "after training": "训练之后",
    "merge": "合并适配器", "warm-up": "预热", "reward model": "奖励模型", "done": "完成", "rehearsal: {name}": "演练：{name}",
    "reading": "读取数据", "reading {name}": "读取 {name}", "tokenizing {name}": "分词 {name}", "held-out loss": "留出损失",
    "sampling answers": "采样回答", "loss of the references": "参考回答的损失",
    # the line of a step
    "step {at}/{total}": "第 {at}/{total} 步", "reward {v:5.2f}": "奖励 {v:5.2f}", "score {v:5.2f}": "分数 {v:5.2f}",
    "loss {v:6.3f}": "损失 {v:6.3f}", "accuracy {v:3.0%}": "准确率 {v:3.0%}", "length {v:4.0f}": "长度 {v:4.0f}",
    "dead groups {v:4.0%}": "死组 {v:4.0%}", "gradient {v:5.2f}": "梯度 {v:5.2f}",
    "held-out loss {v:6.3f}": "留出损失 {v:6.3f}", "held-out accuracy {v:3.0%}": "留出准确率 {v:3.0%}",
    "{v:6,.0f} tok/s": "{v:6,.0f} token/秒", "{left} left": "剩余 {left}",
    "{left} left, {cost:.2f} at {price} per hour": "剩余 {left}，按每小时 {price} 计 {cost:.2f}",
    # plan and summary
    "plan: {rows:,} rows, {tokens:,} tokens ({mean:.0f} per row, {share:.0%} trained on); {steps:,} optimizer steps of {batch} rows = {epochs:.2g} epochs, about {seen:,.0f} tokens": "计划：{rows:,} 行，{tokens:,} 个 token（每行 {mean:.0f} 个，{share:.0%} 计入损失）；{steps:,} 步，每步 {batch} 行，共 {epochs:.2g} 轮，约 {seen:,.0f} 个 token",
    "plan: {rows:,} prompts of {mean:.0f} tokens; {steps:,} optimizer steps of {batch} completions, {group} per prompt = {epochs:.2g} epochs": "计划：{rows:,} 条提示词，平均 {mean:.0f} 个 token；{steps:,} 步，每步采样 {batch} 个回答，每条提示词 {group} 个，共 {epochs:.2g} 轮",
    "      {steps:,} steps are days on any card. --max_steps 2000: {rows:,} rows": "      {steps:,} 步在任何显卡上都要几天。--max_steps 2000：{rows:,} 行",
    "run: {folder}": "本次运行：{folder}",
    "      an unfinished run with these arguments and this data goes on from {checkpoint}": "      参数和数据相同的运行尚未完成，从 {checkpoint} 接着训练",
    "stopping: a checkpoint is saved after this step; the same command goes on from it": "即将停止：这一步之后保存检查点；用同样的命令接着训练",
    "saved: {folder}": "已保存：{folder}", "before": "训练前", "after": "训练后", "question": "问题",
    "instruction": "指令", "input": "输入", "reference": "参考回答", "output": "参考回答", "source": "来源", "(empty)": "（空）",
    "held-out perplexity{name}: {before:.2f} before, {after:.2f} after ({rows} rows, {tokens:,} tokens counted)": "留出困惑度{name}：训练前 {before:.2f}，训练后 {after:.2f}（{rows} 行，计入 {tokens:,} 个 token）",
    "Ask it yourself: {command}": "自己问一问：{command}", "Talk to it: {command}": "和它聊聊：{command}",
    "As files for other programs: {made}\nAre they the trained model?  {judged}": "导出给别的程序用：{made}\n检验导出的是不是训练好的模型：{judged}",
    "{name}: score of {shown} held-out answers {before:+.2f} before, {after:+.2f} after   {folder}": "{name}：{shown} 个留出回答的分数，训练前 {before:+.2f}，训练后 {after:+.2f}   {folder}",
    "{count} test problems, answered greedily": "{count} 道测试题，贪心解码", "right by the answer block": "答案块正确", "by the last number": "最后一个数正确", "in the form": "格式正确", "tokens": "token 数", "nothing gained": "没有提高", "sharpening: what many tries held is now said at the first": "锐化：从前多试几次才对的，现在一次就对", "learning: one try now is right more often than one of many was": "学到新东西：现在试一次，比从前试多次更常答对",
    "learned": "学会了", "known before, and kept": "本来就会，没有忘", "not learned": "没学会", "lost on the way": "忘掉了",
    # the commonest errors
    "error: {message}": "错误：{message}", "unknown flag --{name}": "没有 --{name} 这个参数",
    "; did you mean --{near}?": "；是不是 --{near}？",
    "; --help lists this recipe's flags, --help_all every one": "；--help 列出本任务的参数，--help_all 列出全部",
    "cannot write to {folder}: {why}. Set OUTPUT_DIR or MODELS_DIR.": "无法写入 {folder}：{why}。请设置 OUTPUT_DIR 或 MODELS_DIR。",
    "not enough disk space for {what}: {folder} has {free:.1f} GB free, about {need:.1f} GB are needed. Free some, or move OUTPUT_DIR and MODELS_DIR.": "磁盘空间不够（{what}）：{folder} 剩余 {free:.1f} GB，约需 {need:.1f} GB。请清理磁盘，或改 OUTPUT_DIR 和 MODELS_DIR。",
    "model {name!r} was not found. Tried:\n  {tried}\nTo get it: {fix}": "找不到模型 {name!r}。找过：\n  {tried}\n下载方法：{fix}",
    "{place}: {wrong}. Bring the file again (a download goes on where it broke off), or give another --model.": "{place}：{wrong}。请重新下载这个文件（会断点续传），或用 --model 换一个模型。",
    "{place} is a LoRA adapter, not a model: give it as --adapter, and its base as --model.": "{place} 是 LoRA 适配器，不是模型：请用 --adapter 给它，用 --model 给它的基座。",
    "--quantization 4bit needs an NVIDIA GPU. {why}": "--quantization 4bit 需要 NVIDIA 显卡。{why}",
    "{model} needs about {need:.0f} GB of memory, {free:.0f} GB are free. Try --quantization 4bit.": "{model} 约需 {need:.0f} GB 显存或内存，空闲 {free:.0f} GB。请试 --quantization 4bit。",
    "{model} needs about {need:.0f} GB of memory, {free:.0f} GB are free. Try a smaller --model.": "{model} 约需 {need:.0f} GB 显存或内存，空闲 {free:.0f} GB。请用 --model 换小一点的模型。",
    "{source}: no such file or folder, and not of the form <org>/<name> that a hub has.": "{source}：没有这个文件或文件夹，也不是模型站上 <org>/<name> 形式的名字。",
    "{source}: no such file or folder here, and the hub did not give it: {why}\nCheck the name and the network, set HF_ENDPOINT to a mirror, or copy the data here and give --data PATH.": "{source}：本机没有这个文件或文件夹，也下载不到：{why}\n请检查名字和网络，把 HF_ENDPOINT 设成镜像站，或把数据拷到本机再给 --data 路径。",
    "{source}: no column {name!r}. Columns found: {there}.": "{source}：没有 {name!r} 这一列。现有的列：{there}。",
    "{source}: no usable {what} in it. Columns found: {there}.": "{source}：没有可用的数据（{what}）。现有的列：{there}。",
    "{name}: no row fits in --max_length {length} tokens.": "{name}：没有一行放得进 --max_length {length} 个 token。",
    "no token is trained on: every label is -100. Look at --show_mask 3: is the answer empty, cut off by --max_length, or is the text that marks its beginning not in the template?": "没有一个 token 计入损失：标签全是 -100。请看 --show_mask 3：回答是不是空的，是不是被 --max_length 截掉了，标出回答开头的文字在不在模板里？",
    "{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.": "{adapter} 里没有适配器（没有 adapter_config.json）。请给 train.py 最后打印的文件夹。",
    "no finished run in {root}: run train.py first, or name a folder.": "{root} 里没有训练完的运行：请先运行 train.py，或指定文件夹。",
    "{error}\nTry, in this order: --per_device_train_batch_size 1 with --gradient_accumulation_steps {batch} (the same updates); --quantization 4bit; --gradient_checkpointing true; a smaller --max_length; a smaller --model.": "显存不够：{error}\n依次试：--per_device_train_batch_size 1 加 --gradient_accumulation_steps {batch}（更新不变）；--quantization 4bit；--gradient_checkpointing true；更小的 --max_length；更小的 --model。",
    "stopped at step {step}: {why}. Nothing is saved as the result; in {where} metrics.jsonl and the checkpoints before this step are kept. Try{half} a lower --learning_rate.": "在第 {step} 步停止：{why}。没有保存结果；{where} 里的 metrics.jsonl 和这一步之前的检查点都还在。请试{half}更低的 --learning_rate。",
}  # fmt: skip
