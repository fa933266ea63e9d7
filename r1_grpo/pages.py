"""The two pages of a run. No torch here.

samples.html   the same test problems through training
rollouts.html  completions that were trained on, of chosen steps, grouped by prompt, with rewards and advantages

Of the second are kept the first and the newest step, three between, and each at which an alarm rang; of each three
groups, those with the widest, the middle and the narrowest rewards; of a group eight completions, of a text 1,200
characters: at most 264 completions, half a million characters of ordinary text. The pages need no script and nothing
else; all texts are escaped.
"""

import html
import math
import re
from statistics import stdev

from alarms import texts
from common.files import replace_text, write_lines
from common.rows import read_lines
from common.screen import language
from rewards import MOST

SHOWN, LONGEST, ASKED = 8, 1200, 800  # completions of a group, characters of a text, of a question
FLAG = re.compile(r"--\w+")

LABELS = {
    "en": {
        "title": "What was trained on", "lead": "Completions of this run's training steps, with what the rules paid and the "
        "advantage A that each one got. A\u00a0>\u00a00: this text was made likelier; A\u00a0<\u00a00: less likely; A\u00a0=\u00a00: nothing was learned.",
        "alarms": "Alarms", "quiet": "No alarm rang.", "usually": "Usually", "try": "Try", "read": "Read step {step}",
        "steps": "Steps", "step": "step", "nth": "step {n}", "first": "the first", "between": "between", "newest": "the newest",
        "reward": "reward", "accuracy": "right", "completions/mean_length": "tokens", "completions/clipped_ratio": "cut off",
        "frac_reward_zero_std": "dead", "entropy": "entropy", "kl": "KL", "gold": "gold", "mean": "mean",
        "spread": "std", "dead group": "dead group: all rewards equal, no gradient", "right": "right", "wrong": "wrong",
        "of": "{shown} of {count} groups: widest, middle, narrowest rewards", "all": "all {count} groups", "more": "{n} between these are left out",
        "cut": "… {n:,} characters left out …", "empty": "(empty)", "characters": "{n:,} characters",
    },
    "zh": {
        "title": "训练用的回答", "lead": "本次训练各步的采样回答，附每条规则的得分和优势 A。A\u00a0>\u00a00：这段文字的概率被提高；"
        "A\u00a0<\u00a00：被降低；A\u00a0=\u00a00：什么也没学到。",
        "alarms": "警报", "quiet": "没有警报。", "usually": "通常说明", "try": "可以试试", "read": "看第 {step} 步",
        "steps": "保留的各步", "step": "步", "nth": "第 {n} 步", "first": "第一步", "between": "中间", "newest": "最新一步",
        "reward": "奖励", "accuracy": "准确率", "completions/mean_length": "token 数", "completions/clipped_ratio": "截断",
        "frac_reward_zero_std": "死组", "entropy": "熵", "kl": "KL", "gold": "标准答案", "mean": "平均",
        "spread": "标准差", "dead group": "死组：奖励全部相同，没有梯度", "right": "正确", "wrong": "错误",
        "of": "{count} 组中的 {shown} 组：奖励差别最大、居中、最小", "all": "全部 {count} 组", "more": "中间 {n} 条略去",
        "cut": "…… 略去 {n:,} 个字符 ……", "empty": "（空）", "characters": "{n:,} 个字符",
    },
}  # fmt: skip
METRICS = {  # column -> how it is written
    "reward": "{:.2f}",
    "accuracy": "{:.0%}",
    "completions/mean_length": "{:.0f}",
    "completions/clipped_ratio": "{:.0%}",
    "frac_reward_zero_std": "{:.0%}",
    "entropy": "{:.2g}",
    "kl": "{:.2g}",
}
STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#fff;--card:#f6f8fa;--good:#1a7f37;
--bad:#cf222e;--warn:#9a6700;--warm:#fff8c5}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#3d444d;--back:#0d1117;--card:#151b23;
--good:#3fb950;--bad:#f85149;--warn:#d29922;--warm:#272115}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC","WenQuanYi Micro Hei",
sans-serif;color:var(--ink);background:var(--back);max-width:1200px;margin:0 auto;padding:1rem 1rem 4rem;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.3rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .5rem}
.soft{color:var(--soft);font-size:.875rem}.good{color:var(--good)}.bad{color:var(--bad)}.zero{opacity:.55}
a{color:inherit}code{white-space:nowrap;font-size:.95em}
.alarm{border-left:4px solid var(--warn);background:var(--warm);border-radius:6px;padding:.6rem .9rem;margin:.6rem 0}
.alarm b{color:var(--warn)}.alarm p{margin:.25rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}th:first-child,td:first-child{text-align:left;padding-left:0}
@media(max-width:480px){table{font-size:.78rem}th,td{padding:.25rem .3rem}}
details{margin-top:.8rem;border-top:1px solid var(--line);padding:.6rem 0;scroll-margin-top:.5rem}
summary{cursor:pointer;font-weight:600;font-size:1.1rem}summary .soft{font-weight:400}
article{border:1px solid var(--line);border-radius:10px;margin:.9rem 0;overflow:hidden}
.asked{background:var(--card);padding:.6rem .9rem;white-space:pre-wrap}
.asked .soft{display:block}
.cells{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr))}
.cell{padding:.5rem .9rem .7rem;min-width:0;box-shadow:-1px -1px 0 var(--line)}
.head{display:flex;flex-wrap:wrap;gap:0 .7rem;align-items:baseline}.head b{font-size:1.05rem}
.paid{font-size:.8rem;color:var(--soft);margin:.1rem 0 .35rem;line-height:1.4}.paid b{color:var(--ink);font-weight:600}
pre{white-space:pre-wrap;font:.85rem/1.45 ui-monospace,Menlo,Consolas,"Noto Sans Mono CJK SC",monospace;margin:0;
max-height:21em;overflow-y:auto}
"""


# -- samples.html


def samples(told, name):
    """A page that needs nothing else: a table per problem, a row per step, a cell per completion with what it earned."""
    parts = [
        f"""<!doctype html><meta charset="utf-8"><title>samples: {html.escape(name)}</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em}}table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;
padding:.4em;vertical-align:top;text-align:left}}pre{{white-space:pre-wrap;max-width:22em;margin:0}}small{{color:#555}}
</style><h1>The same problems through training</h1><p>Green: reward {MOST:g} of {MOST:g}. White: 0. Each cell is one sample.</p>"""
    ]
    for question in dict.fromkeys(each["question"] for each in told):
        mine = [each for each in told if each["question"] == question]
        parts.append(f"<h2>{html.escape(question)}</h2><p>gold: {html.escape(mine[0]['gold'])}</p><table>")
        for each in mine:
            cells = []
            for answer in each["completions"]:
                total = sum(answer["rewards"].values())
                detail = ", ".join(f"{reward} {value:g}" for reward, value in answer["rewards"].items() if value)
                shade = max(0.0, min(1.0, total / MOST)) * 0.5
                cells.append(
                    f'<td style="background:rgba(60,180,75,{shade:.2f})"><b>{total:.2f}</b> '
                    f"<small>{html.escape(detail)}</small><pre>{html.escape(answer['text'])}</pre></td>"
                )
            parts.append(f"<tr><th>step {each['step']}</th>{''.join(cells)}</tr>")
        parts.append("</table>")
    return "\n".join(parts)


# -- what is kept of a run's rollouts


def groups_of(logs, count, question, golds):
    """The groups of a step that are worth reading, from what TRL keeps of its newest batch.

    logs: trainer._logs. count: completions per prompt. question: a prompt's text -> its question. golds: question -> gold.
    Returns (number of groups, [{"question", "gold", "left_out", "completions": [{"text", "rewards", "advantage"}]}]), the
    widest rewards first, in a group the largest advantage.
    """
    prompts, made = list(logs["prompt"]), list(logs["completion"])
    names, found = [name.removesuffix("_reward_func") for name in logs["rewards"]], []
    paid = [dict(zip(names, each, strict=True)) for each in zip(*logs["rewards"].values(), strict=True)]
    paid = [{name: value for name, value in each.items() if math.isfinite(value)} for each in paid]
    rows = [
        {"text": shorten(text), "length": len(text), "rewards": each, "advantage": advantage}
        for text, each, advantage in zip(made, paid, logs["advantages"], strict=True)
    ]
    for start in range(0, len(rows) - count + 1, count):
        members = sorted(rows[start : start + count], key=lambda row: -row["advantage"])
        asked, sums = question(prompts[start]), [total(row) for row in members]
        more = max(0, count - SHOWN)
        if more:
            members = members[: SHOWN // 2] + members[-(SHOWN // 2) :]
        facts = {"mean": sum(sums) / count, "std": stdev(sums), "left_out": more}
        found.append({"question": shorten(asked, ASKED), "gold": golds.get(asked)} | facts | {"completions": members})
    found.sort(key=lambda group: -group["std"])
    kept = sorted({0, (len(found) - 1) // 2, len(found) - 1}) if found else []
    return len(found), [found[at] for at in kept]


def total(completion):
    return sum(completion["rewards"].values())


def shorten(text, longest=LONGEST):
    """A text, or [its beginning, how many characters are left out, its end, where the answer stands]."""
    if len(text) <= longest:
        return text
    head, tail = longest * 2 // 3, longest // 3
    return [text[:head], len(text) - head - tail, text[-tail:]]


def read(folder):
    file = folder / "rollouts.jsonl"
    return read_lines(file) if file.exists() else []


def cut(run, step):
    """Forget what was kept after `step`: after a resume these steps come again."""
    write(run, [each for each in read(run.folder) if each["step"] <= step])


def keep(run, log, why, count, groups):
    """Add a step to the page, or to the one that is there why it is kept.

    log: its metrics. why: some of "first", "between", "newest", "alarm". What was the newest only makes room.
    """
    told, step = read(run.folder), log["step"]
    why = list(dict.fromkeys([*(reason for each in told if each["step"] == step for reason in each["why"]), *why]))
    told = [each | {"why": [reason for reason in each["why"] if reason != "newest"]} for each in told]
    told = [each for each in told if each["step"] < step and each["why"]]
    numbers = {name: log[name] for name in METRICS if log.get(name) is not None and math.isfinite(log[name])}
    write(run, [*told, {"step": step, "why": why, "numbers": numbers, "count": count, "groups": groups}])


def write(run, told):
    if told or read(run.folder):
        write_lines(run.folder / "rollouts.jsonl", told)
        rung = run.record.get("alarms", [])
        replace_text(run.folder / "rollouts.html", page(run.folder.name, told, rung, language()))


# -- rollouts.html


def page(name, told, rung, lang):
    label = LABELS[lang]
    heads = "".join(f"<th>{label[each]}</th>" for each in METRICS)
    lines = "".join(
        f'<tr><td><a href="#step-{each["step"]}">{each["step"]}</a></td>'
        + "".join(
            f"<td>{form.format(each['numbers'][key]) if key in each['numbers'] else ''}</td>"
            for key, form in METRICS.items()
        )
        + "</tr>"
        for each in told
    )
    alarms = "".join(alarm_box(each, label, lang) for each in rung) or f'<p class="soft">{label["quiet"]}</p>'
    named = {each["step"]: [] for each in told}
    for each in rung:
        named.setdefault(each["step"], []).append(texts(each, lang)[0])
    opened = {each["step"] for each in rung} or {told[-1]["step"]} if told else set()
    steps = "".join(step_section(each, label, named[each["step"]], each["step"] in opened) for each in told)
    return f"""<!doctype html><html lang="{"zh-CN" if lang == "zh" else "en"}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{label["title"]}: {html.escape(name)}</title><style>{STYLE}</style></head><body>
<h1>{label["title"]}</h1><div class="soft">{html.escape(name)}</div><p>{label["lead"]}</p>
<h2>{label["alarms"]}</h2>{alarms}
<h2>{label["steps"]}</h2><div class="scroll"><table><tr><th>{label["step"]}</th>{heads}</tr>{lines}</table></div>
{steps}</body></html>
"""


def alarm_box(alarm, label, lang):
    title, seen, means, remedy = (FLAG.sub(r"<code>\g<0></code>", html.escape(each)) for each in texts(alarm, lang))
    link = f'<a href="#step-{alarm["step"]}">{label["read"].format(step=alarm["step"])}</a>'
    return (
        f'<div class="alarm"><p><b>{title}</b> · {link}</p><p>{seen}</p><p class="soft">{label["usually"]}: {means}</p>'
        f'<p class="soft">{label["try"]}: {remedy}</p></div>'
    )


def step_section(told, label, alarms, opened):
    why = [f'<span class="bad">{html.escape(each)}</span>' for each in alarms]
    why += [label[each] for each in told["why"] if each in label]
    groups = "".join(group_card(each, label) for each in told["groups"])
    shown = len(told["groups"])
    shown = label["of" if shown < told["count"] else "all"].format(shown=shown, count=told["count"])
    return (
        f'<details id="step-{told["step"]}"{" open" if opened else ""}><summary>{label["nth"].format(n=told["step"])} '
        f'<span class="soft">{" · ".join(why)}</span></summary><p class="soft">{shown}</p>{groups}</details>'
    )


def group_card(group, label):
    facts = [f"{label['gold']}: {html.escape(str(group['gold']))}"] if group["gold"] is not None else []
    facts.append(f"{label['mean']} {group['mean']:.2f}, {label['spread']} {group['std']:.2f}")
    if group["std"] == 0:
        facts.append(f'<span class="bad">{label["dead group"]}</span>')
    if group["left_out"]:
        facts.append(label["more"].format(n=group["left_out"]))
    cells = "".join(completion_cell(each, label) for each in group["completions"])
    return (
        f'<article><div class="asked">{written(group["question"], label)}<span class="soft">{" · ".join(facts)}</span></div>'
        f'<div class="cells">{cells}</div></article>'
    )


def completion_cell(completion, label):
    gain, paid = round(completion["advantage"], 2), []
    for name, value in completion["rewards"].items():
        text = f"{html.escape(name)} <b>{value:g}</b>" if value else f'<span class="zero">{html.escape(name)} 0</span>'
        paid.append(text)
    colour = "good" if gain > 0 else "bad" if gain < 0 else "soft"
    advantage = f"{gain:+.2f}" if gain else "0"
    right = completion["rewards"].get("correctness")
    verdict = (
        "" if right is None else f'<span class="{"good" if right > 0 else "bad"}">{"✓" if right > 0 else "✗"}</span>'
    )
    return (
        f'<section class="cell"><div class="head"><b class="{colour}">A {advantage}</b><span>{label["reward"]} '
        f'{total(completion):.2f} {verdict}</span><span class="soft">{label["characters"].format(n=completion["length"])}</span>'
        f'</div><div class="paid">{" · ".join(paid)}</div><pre>{written(completion["text"], label)}</pre></section>'
    )


def written(text, label):
    """A text, or a shortened one, as HTML."""
    if isinstance(text, str):
        return html.escape(text) if text.strip() else f'<span class="soft">{label["empty"]}</span>'
    head, left_out, tail = text
    gap = f'\n<span class="soft">{label["cut"].format(n=left_out)}</span>\n'
    return html.escape(head) + gap + html.escape(tail)
