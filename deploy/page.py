"""gate.html: one bar per file, from the base at 0 to the trained model at 1. A static page without anything from elsewhere."""

import html
from pathlib import Path

from common.files import replace_text

LEFT, RIGHT = -0.5, 2.25  # slopes that the axis shows; what lies outside is drawn at its edge
COLOURS = {0: "#1a7f4b", 4: "#b3261e", 5: "#b3261e", 6: "#9a6700", None: "#6b7280"}
CHINESE = {
    0: "就是训练出的模型",
    3: "训练没有带来变化",
    4: "仍是基座模型：训练结果不在里面",
    5: "是另一个模型",
    6: "无法判定：需要更多文本",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #6b7280; --line: #d0d7de; --back: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --back: #0d1117; } }
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif; color: var(--ink);
  background: var(--back); max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } .soft { color: var(--soft); font-size: .9rem; }
.answer { border-left: 6px solid; padding: .4rem 1rem; margin: 1rem 0; font-size: 1.15rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--soft); font-weight: normal; } th, td { padding: .35rem .5rem; border-top: 1px solid var(--line); vertical-align: middle; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } td.name { overflow-wrap: anywhere; max-width: 220px; }
svg { width: 360px; display: block; } svg text { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--line); }
"""


def place(slope: float) -> float:
    """Where a slope lies on the axis, in pixels of 360."""
    return 10 + 340 * (min(max(slope, LEFT), RIGHT) - LEFT) / (RIGHT - LEFT)


def bar(at, low, high, colour) -> str:
    start, end = sorted((place(0), place(at)))
    grid = "".join(f'<line class="grid" x1="{place(tick)}" x2="{place(tick)}" y1="0" y2="26"/>' for tick in (0, 1, 2))
    drawn = f'<rect x="{start:.1f}" y="8" width="{max(2.0, end - start):.1f}" height="10" rx="2" fill="{colour}"/>'
    spread = (
        f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="13" y2="13" stroke="currentColor" stroke-width="2"/>'
    )
    return f'<svg viewBox="0 0 360 26" role="img" aria-label="slope {at:.2f}">{grid}{drawn}{spread}</svg>'


def axis() -> str:
    words = {0: "0 base 基座", 1: "1 trained 训练后", 2: "2 twice 两倍"}
    ticks = "".join(
        f'<text x="{place(tick)}" y="14" text-anchor="middle">{word}</text>' for tick, word in words.items()
    )
    return f'<svg viewBox="0 0 360 20">{ticks}</svg>'


def write(file: Path, facts: dict, rows: list, codes: dict):
    """rows: (arm, slope, lower and upper end, KL, limit, exit code or None, what is to be said)."""
    body, code = [], facts["code"]
    for arm, at, low, high, kl, limit, verdict, said in rows:
        colour = COLOURS[verdict]
        sign = {0: "✓ ", None: ""}.get(verdict, "✗ " if verdict != 6 else "? ")
        chinese = CHINESE.get(verdict, "") if said == codes.get(verdict) else ""
        numbers = f"{at:.3f}<br><span class=soft>{low:.3f} … {high:.3f}</span>" if limit else f"{at:g}"
        far = f"{kl:.2g}" + (f"<br><span class=soft>≤ {limit:g}</span>" if limit else "")
        body.append(
            f'<tr><td class="name">{html.escape(arm)}</td><td>{bar(at, low, high, colour)}</td><td class="number">{numbers}</td>'
            f'<td class="number">{far}</td>'
            f'<td style="color:{colour}">{sign}{html.escape(said)}<br><span class=soft>{chinese}</span></td></tr>'
        )
    enough = facts["tokens"] >= facts["min_tokens"] and facts["texts"] >= 20
    few = "" if enough else " Fewer than 20 texts and 2,000 tokens: intervals are wide. 文本偏少，区间会较宽。"
    replace_text(
        file,
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>gate: {html.escape(Path(facts["run"]).name)}</title><style>{STYLE}</style>
<h1>Is this file the trained model? 这个文件就是训练出的模型吗？</h1>
<div class="soft">{html.escape(facts["run"])} · {facts["texts"]} texts, {facts["tokens"]:,} tokens · {facts["dtype"]} · {facts["seconds"]} s.{few}</div>
<div class="answer" style="border-color:{COLOURS.get(code, "#b3261e")}">{"✓" if code == 0 else "✗"} {codes[code]}
<span class="soft">{CHINESE[code]} (exit code {code})</span></div>
<table><tr><th>file 文件</th><th>{axis()}</th><th>slope 斜率</th><th>KL per token<br>每词元 KL</th><th>it is 结论</th></tr>
{"".join(body)}</table>
<p class="soft">The bar shows how much of the training is in a file: each token's log-probability, against the base, over the same of the adapter.
The line across its end is the 95% interval. KL is the distance to the adapter; quantised files are farther away.
条形表示文件里有多少训练结果：每个词元相对基座的对数概率变化，与适配器的变化相比。末端横线是 95% 区间；KL 是与适配器的距离，量化越狠越大。</p></html>
""",
    )
