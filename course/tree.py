"""Which method for which problem, as a picture: writes figures/tree.svg and figures/tree.zh-CN.svg.

Write both:  python tree.py
"""

from html import escape
from pathlib import Path

FIGURES = Path(__file__).parent / "figures"
WIDTH, ROW, BOX, LEFT, RIGHT = (
    960,
    96,
    68,
    20,
    540,
)  # pixels: of all, from row to row, a box's height, where boxes begin
ASK, TAKE = 400, 400  # widths of the boxes
# A question, two lines; what to do if the answer is yes: its name, then where it is taught.
TREE = {
    "en": [
        ("Does a good prompt do it,", "perhaps with a few examples in it?", "Prompting", "nothing to train; keep the prompt as the baseline"),
        ("Does it lack facts, ones that change", "or have to be quoted?", "Retrieval-augmented generation (RAG)", "look them up, put them into the prompt"),
        ("Can you show the right answer", "some hundred times?", "Supervised fine-tuning", "alpaca · medical · domain_mix · vl_insurance · s1_scaling"),
        ("Is there much raw text of the field", "that it has never read?", "Continued pretraining, then fine-tuning", "continual · which LoRA: lora_variants"),
        ("Can a program check an answer, and is", "the model right now and then?", "GRPO with rules as rewards", "r1_grpo"),
        ("Can people say which of two answers", "is the better one?", "DPO and its kin, or a reward model", "preference · rlhf_ppo"),
    ],
    "zh": [
        ("写好提示词，再放几个例子，", "能解决吗？", "提示词工程", "不用训练；把它留作对照"),
        ("缺的是知识吗？会变的，", "或者必须有出处的？", "检索增强生成（RAG）", "先查资料，再放进提示词"),
        ("能给出几百个", "正确回答吗？", "监督微调（SFT）", "alpaca · medical · domain_mix · vl_insurance · s1_scaling"),
        ("有大量领域原文，", "而模型从没读过吗？", "继续预训练，再微调", "continual · 用哪种 LoRA：lora_variants"),
        ("程序能检查对错，", "而且模型偶尔能答对吗？", "GRPO，规则作奖励", "r1_grpo"),
        ("人能说出两个回答里", "哪个更好吗？", "DPO 一类，或奖励模型", "preference · rlhf_ppo"),
    ],
}  # fmt: skip
WORDS = {
    "en": (
        "yes",
        "no",
        "Collect examples and a test set first",
        "without them no method can be chosen, nor seen to work",
    ),
    "zh": ("是", "否", "先收集样例和测试集", "没有它们，选不了方法，也看不出有没有效果"),
}


def text(x, y, words, size=15, weight="normal", anchor="start", color="#1f2328"):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{color}">'
        f"{escape(words)}</text>"
    )


def box(x, y, width, fill, line):
    return f'<rect x="{x}" y="{y}" width="{width}" height="{BOX}" rx="8" fill="{fill}" stroke="{line}"/>'


def arrow(x1, y1, x2, y2):
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#57606a" stroke-width="1.5" marker-end="url(#tip)"/>'


def draw(lang):
    """The tree as SVG: questions down the left side, what to do on the right."""
    yes, no, last, why = WORDS[lang]
    rows = TREE[lang]
    height = ROW * (len(rows) + 1) + 20
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        "font-family=\"Helvetica, Arial, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif\">",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (first, second, name, where) in enumerate(rows):
        top = 20 + number * ROW
        middle, below = top + BOX // 2, top + BOX
        made += [box(LEFT, top, ASK, "#f6f8fa", "#8c959f")]
        made += [text(LEFT + 16, top + 29, first), text(LEFT + 16, top + 51, second)]
        made += [
            arrow(LEFT + ASK, middle, RIGHT, middle),
            text((LEFT + ASK + RIGHT) // 2, middle - 8, yes, 13, anchor="middle"),
        ]
        made += [box(RIGHT, top, TAKE, "#ddf4ff", "#54aeff")]
        made += [text(RIGHT + 16, top + 29, name, 16, "bold"), text(RIGHT + 16, top + 51, where, 13, color="#57606a")]
        made += [
            arrow(LEFT + ASK // 2, below, LEFT + ASK // 2, top + ROW),
            text(LEFT + ASK // 2 + 10, below + 19, no, 13),
        ]
    top = 20 + len(rows) * ROW
    made += [box(LEFT, top, ASK, "#fff8c5", "#d4a72c")]
    made += [text(LEFT + 16, top + 29, last, 16, "bold"), text(LEFT + 16, top + 51, why, 13, color="#57606a"), "</svg>"]
    return "\n".join(made) + "\n"


def pictures():
    """{file name: SVG}."""
    return {"tree.svg": draw("en"), "tree.zh-CN.svg": draw("zh")}


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for name, drawn in pictures().items():
        (FIGURES / name).write_text(drawn, "utf-8")
        print(f"course/figures/{name}")
