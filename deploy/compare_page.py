"""What compare.py writes: compare.html, one static file with both models' answers to each question side by side.

Words that only one side has are marked. No script, nothing that is loaded from elsewhere; every text is escaped. Labels in
English or Chinese.
"""

import difflib
import html
import re
import statistics

from common import screen

ALIKE = 0.25  # below that share of common words, marks would cover all of both answers and are left out

LABELS = {
    "en": {
        "title": "Base and trained model, side by side", "questions": "{n} questions", "base": "base", "trained": "trained",
        "same": "same answer", "length": "tokens, median", "cut": "cut off at the limit", "right": "right",
        "wrong": "wrong", "reference": "Reference", "prompt": "Question", "gold": "gold answer",
        "lost": "right → wrong", "won": "wrong → right", "flips": "What training turned round", "none": "none",
        "marks": "Marked: words that only this side has.", "empty": "(empty answer)", "few": "few words in common: not marked",
        "from": {"recipe": "held-out rows of the run", "kept": "first rows of the run's heldout.jsonl; of a small held-out "
                 "set, training rows follow", "file": "questions from {file}"},
        "caution": "Read, do not count: a dozen answers show how a model changed, not which is better.",
        "ungraded": "Not graded: math-verify is not installed.", "lasted": "{seconds:.1f} s", "tokens": "{n} tokens",
    },
    "zh": {
        "title": "基座模型与训练后模型：逐题对照", "questions": "{n} 个问题", "base": "基座模型", "trained": "训练后",
        "same": "回答相同", "length": "词元数（中位数）", "cut": "达到长度上限被截断", "right": "正确",
        "wrong": "错误", "reference": "参考答案", "prompt": "问题", "gold": "标准答案",
        "lost": "由对变错", "won": "由错变对", "flips": "训练改变了对错的题目", "none": "无",
        "marks": "标出的是只在这一侧出现的词。", "empty": "（空回答）", "few": "共同的词太少，未标注",
        "from": {"recipe": "该次训练的留出样本", "kept": "该次训练 heldout.jsonl 的前几行；留出样本不足时后面是训练样本",
                 "file": "问题来自 {file}"},
        "caution": "请阅读而不要计数：十几个回答能看出模型怎样变了，不能说明哪个更好。",
        "ungraded": "未评分：没有安装 math-verify。", "lasted": "{seconds:.1f} 秒", "tokens": "{n} 个词元",
    },
}  # fmt: skip

STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#fff;--card:#f6f8fa;--mark:#fff1c2;
--good:#1a7f37;--bad:#cf222e;--tuned:#0969da}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#3d444d;--back:#0d1117;--card:#151b23;
--mark:#4b3a0a;--good:#3fb950;--bad:#f85149;--tuned:#58a6ff}}
*{box-sizing:border-box}
body{font:16px/1.6 system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC","WenQuanYi Micro Hei",
sans-serif;color:var(--ink);background:var(--back);max-width:1080px;margin:0 auto;padding:1.2rem 1rem 4rem;overflow-wrap:anywhere}
h1{font-size:1.45rem;line-height:1.3;margin:.4rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}
.soft{color:var(--soft);font-size:.875rem}.good{color:var(--good)}.bad{color:var(--bad)}
a{color:inherit}ul{margin:.3rem 0;padding-left:1.2rem}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .8rem;border-bottom:1px solid var(--line)}th{font-weight:600}
th:first-child,td:first-child{text-align:left;padding-left:0;color:var(--soft);font-weight:400}
article{border:1px solid var(--line);border-radius:10px;margin:1.1rem 0;overflow:hidden;scroll-margin-top:1rem}
.asked{background:var(--card);padding:.7rem 1rem;border-bottom:1px solid var(--line);display:flex;gap:.8rem}
.asked b{color:var(--soft);font-weight:600}.asked div{flex:1;min-width:0}
.text{white-space:pre-wrap}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr))}
.side{padding:.7rem 1rem;min-width:0;box-shadow:-1px -1px 0 var(--line)}
.who{display:flex;flex-wrap:wrap;gap:.1rem .8rem;align-items:baseline;margin-bottom:.3rem}
.who b{font-size:.875rem}.tuned .who b{color:var(--tuned)}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 1px;box-decoration-break:clone}
.reference{border-top:1px solid var(--line);padding:.6rem 1rem;color:var(--soft);font-size:.925rem}
"""


def words(text: str) -> list[str]:
    """Words, blanks and signs; each Chinese, Japanese or Korean character by itself."""
    return re.findall(
        r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\s+|.",
        text,
    )


def marked(one: str, two: str) -> tuple[str, str, bool]:
    """Both texts as HTML, in which what only one of them has is marked; whether enough is common to mark the rest."""
    left, right = words(one), words(two)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    if not one.strip() or not two.strip() or matcher.ratio() < ALIKE:
        return html.escape(one), html.escape(two), False

    def part(found):
        text = html.escape("".join(found))
        return f"<mark>{text}</mark>" if text.strip() else text

    sides = ["", ""]
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            sides = [side + html.escape("".join(left[a:b])) for side in sides]
        else:
            sides = [sides[0] + part(left[a:b]), sides[1] + part(right[c:d])]
    return *sides, True


def language(given: str | None) -> str:
    """en or zh: what is given, else the locale's."""
    return given or screen.language()


def shown(messages: list[dict]) -> str:
    """A conversation as text; of a single question the question."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)


def flip(row) -> str:
    """lost, won or "" of a row."""
    right = list(row["right"].values()) if row["right"] else [True, True]
    return {(True, False): "lost", (False, True): "won"}.get(tuple(right), "")


def page(name: str, made: list[dict], facts: str, lang: str, ungraded: bool) -> str:
    """The page. Nothing in it is loaded from elsewhere, and a policy forbids it, should a text ever get through unescaped."""
    label, cells = LABELS[lang], []
    made = sorted(made, key=lambda row: ("lost", "won", "").index(flip(row)))
    for at, row in enumerate(made, 1):
        cells.append(article(at, row, label))
    arms = ("base", name)
    table = [("", label["base"], label["trained"])]
    table.append(
        (label["length"], *(f"{statistics.median(row['answers'][arm]['tokens'] for row in made):g}" for arm in arms))
    )
    table.append((label["cut"], *(str(sum(row["answers"][arm]["cut"] for row in made)) for arm in arms)))
    judged = [row for row in made if row["right"]]
    if judged:
        table.append((label["right"], *(f"{sum(row['right'][arm] for row in judged)} / {len(judged)}" for arm in arms)))
    lines = "".join("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
                    for tag, line in zip(["th", *["td"] * len(table)], table, strict=False))  # fmt: skip
    same = sum(row["answers"]["base"]["text"] == row["answers"][name]["text"] for row in made)
    turned = flips(made, label) if judged else ""
    return f"""<!doctype html><html lang="{"zh-CN" if lang == "zh" else "en"}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{html.escape(label["title"])}: {html.escape(name)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(label["title"])}</h1>
<div class="soft">{html.escape(name)} · {label["questions"].format(n=len(made))} · {html.escape(facts)} · {label["same"]}: {same}</div>
<table>{lines}</table>{turned}
<p class="soft">{label["marks"]} {label["caution"]}{" " + label["ungraded"] if ungraded else ""}</p>
{"".join(cells)}</body></html>
"""


def flips(made, label) -> str:
    """The questions that changed sides, as links to them."""
    parts = []
    for kind, colour in (("lost", "bad"), ("won", "good")):
        found = [(at, shown(row["messages"])) for at, row in enumerate(made, 1) if flip(row) == kind]
        links = "".join(f'<li><a href="#q{at}">{at}. {html.escape(text[:90])}{"…" if len(text) > 90 else ""}</a></li>'
                        for at, text in found)  # fmt: skip
        parts.append(
            f'<div class="{colour}"><b>{label[kind]}: {len(found)}</b></div>' + (f"<ul>{links}</ul>" if links else "")
        )
    return f"<h2>{label['flips']}</h2>{''.join(parts)}"


def article(at: int, row: dict, label: dict) -> str:
    """One question with both answers."""
    (base, one), (name, two) = row["answers"].items()
    left, right, alike = marked(one["text"], two["text"])
    same, sides = one["text"] == two["text"], []
    for arm, each, text, kind in ((base, one, left, "base"), (name, two, right, "tuned")):
        facts = [label["tokens"].format(n=each["tokens"]), label["lasted"].format(**each)]
        facts += [label["cut"]] if each["cut"] else []
        verdict = ""
        if row["right"]:
            fine = row["right"][arm]
            verdict = f'<span class="{"good" if fine else "bad"}">{"✓" if fine else "✗"} {label["right" if fine else "wrong"]}</span>'
        who = label["base"] if kind == "base" else label["trained"]
        body = text if text.strip() else f'<span class="soft">{label["empty"]}</span>'
        sides.append(f'<section class="side {kind}"><div class="who"><b>{who}</b>{verdict}<span class="soft">{" · ".join(facts)}'
                     f'</span></div><div class="text">{body}</div></section>')  # fmt: skip
    notes = (
        [f"<b>{label['reference']}</b><div class='text'>{html.escape(row['reference'])}</div>"]
        if row["reference"]
        else []
    )
    notes += [f"{label['gold']}: {html.escape(row['gold'])}"] if row["gold"] else []
    notes += [label["same"]] if same else [] if alike else [label["few"]]
    turned = flip(row)
    tag = f'<div class="{"bad" if turned == "lost" else "good"}">{label[turned]}</div>' if turned else ""
    return (f'<article id="q{at}"><div class="asked"><b>{at}</b><div>{tag}<div class="text">{html.escape(shown(row["messages"]))}'
            f'</div></div></div><div class="sides">{"".join(sides)}</div>'
            + (f'<div class="reference">{"<br>".join(notes)}</div>' if notes else "") + "</article>\n")  # fmt: skip
