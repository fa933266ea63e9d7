"""Which answer is better? A page that asks people who cannot know who wrote what, and counts.

Both models of serve.py answer the same question; left and right are drawn anew each time, and the names are shown after the
vote. Who knows which one is "the trained model" prefers it. A vote is one line of votes.jsonl, which votes.py turns into
preference pairs. The share of decided votes that the run has won stands beside its 95% interval (Wilson). The first --needed
of them give the verdict, and no later one changes it: 194 tell a true 60% from a coin's 50% (5% false alarms, 80% found).

    python serve.py outputs/medical/20261122-101500       (in another terminal; prints its address and key)
    OPENAI_API_KEY=... python compare_web.py outputs/medical/20261122-101500
"""

import html
import os
import random
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from common.cli import arg, parse
from common.paths import output_dir
from found import with_run
from votes import append, needed_votes, read, told, wilson

DEFAULTS = dict(
    url="http://127.0.0.1:8000/v1",  # of serve.py; its key comes from OPENAI_API_KEY
    host="127.0.0.1",  # another address asks visitors for a password: that key
    port=7860,  # 0: any free one
    count=50,  # held-out questions that are drawn from
    needed=needed_votes(0.6),  # decided votes before there is a verdict
    max_new_tokens=256,  # of an answer
    timeout=300.0,  # seconds for one answer
)
LONGEST = 8000  # characters of a question of one's own
TEXTS = {
    "en": dict(
        title="Which answer is better?", blind="Left and right are drawn anew for each question.", next="Another question",
        own="A question of your own", ask="Ask it", question="Question", left="Left is better", right="Right is better",
        tie="No difference", first="Answer on the left", second="Answer on the right", base="base model",
        was="Left: {left}. Right: {right}.", few="Not enough votes yet: {n} of {needed} decided ones, {ties} ties.",
        share="The trained model won {share:.0%} of {n} decided votes (95%: {low:.0%} to {high:.0%}), {ties} ties.",
        better="It is better, by the first {needed}.", worse="It is worse, by the first {needed}.",
        same="The first {needed} show no difference.", empty="(empty answer)",
        long="The question is too long.", blank="Write a question first.",
    ),
    "zh": dict(
        title="哪个回答更好？", blind="每个问题左右两侧随机排列。", next="换一个问题", own="自己提问", ask="提问",
        question="问题", left="左边更好", right="右边更好", tie="差不多", first="左侧回答", second="右侧回答", base="基座模型",
        was="左：{left}。右：{right}。", few="票数还不够：{needed} 张有效票中已有 {n} 张，平局 {ties} 张。",
        share="{n} 张有效票中，训练后的模型赢得 {share:.0%}（95% 区间 {low:.0%} 到 {high:.0%}），平局 {ties} 张。",
        better="按前 {needed} 张：训练后更好。", worse="按前 {needed} 张：训练后更差。",
        same="前 {needed} 张没有显示差别。", empty="（空回答）", long="问题太长。",
        blank="请先写下问题。",
    ),
}  # fmt: skip
STYLE = """
.said{white-space:pre-wrap;overflow-wrap:anywhere;min-height:4em;padding:.8em 1em;border-radius:8px;line-height:1.6;
border:1px solid var(--border-color-primary);background:var(--background-fill-primary);color:var(--body-text-color)}
@media(max-width:640px){.sides{flex-direction:column}}
.said b{display:block;font-size:.85em;color:var(--body-text-color-subdued);margin-bottom:.3em}
"""


@dataclass
class Args:
    adapter: str | None = arg(
        None,
        "a finished run's folder (default: the one that --url serves, else the newest of all recipes); also without the flag",
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    prompts: str | None = arg(None, "JSON lines with question, prompt or instruction (default: held-out rows)")
    lang: Literal["en", "zh"] | None = arg(None, "the page's labels (default: as the locale says)")


def standing(file, name: str, needed: int, say: dict) -> str:
    """The count so far as a sentence. The verdict is that of the first `needed` decided votes: to look on is to peek."""
    votes = told(read(file)[0], name)
    decided = [each for each in votes if each != "tie"]
    n, ties, won = len(decided), votes.count("tie"), decided.count(name)
    if n < needed:
        return say["few"].format(n=n, needed=needed, ties=ties)
    low, high = wilson(decided[:needed].count(name), needed)
    verdict = say["better"] if low > 0.5 else say["worse"] if high < 0.5 else say["same"]
    low, high = wilson(won, n)
    return say["share"].format(share=won / n, n=n, low=low, high=high, ties=ties) + " " + verdict.format(needed=needed)


def said(label: str, text: str, say: dict) -> str:
    """A text as HTML; what a model or a visitor wrote stays text."""
    return f'<div class="said"><b>{html.escape(label)}</b>{html.escape(text) if text.strip() else say["empty"]}</div>'


def page(args, name: str, asked: list[dict], file, say: dict):
    """The Gradio page. asked: rows with messages. file: votes.jsonl."""
    import gradio

    from asking import Unanswered, ask
    from compare_page import shown

    def both(messages):
        with ThreadPoolExecutor(2) as pool:
            jobs = {
                arm: pool.submit(ask, args.url, arm, messages, args.max_new_tokens, args.timeout)
                for arm in ("base", name)
            }
            try:
                return {arm: job.result()["text"] for arm, job in jobs.items()}
            except Unanswered as error:
                raise gradio.Error(error.args[0]) from None

    def open_question(messages):
        """One question answered by both, on sides that are drawn: what the page shows, and what it keeps to itself."""
        sides = random.SystemRandom().sample(["base", name], 2)
        found, on = both(messages), gradio.update(interactive=True)
        now = {"id": secrets.token_hex(8), "messages": messages, "answers": found, "left": sides[0]}
        return (now, said(say["question"], shown(messages), say), said(say["first"], found[sides[0]], say),
                said(say["second"], found[sides[1]], say), "", on, on, on)  # fmt: skip

    def draw():
        return open_question(random.SystemRandom().choice(asked)["messages"])

    def own(text):
        if not text or not text.strip():
            raise gradio.Error(say["blank"])
        if len(text) > LONGEST:
            raise gradio.Error(say["long"])
        return open_question([{"role": "user", "content": text}])

    def vote(now, voter, side):
        off = gradio.update(interactive=False)
        if not now:
            return now, "", standing(file, name, args.needed, say), off, off, off
        right = name if now["left"] == "base" else "base"
        winner = {"left": now["left"], "right": right, "tie": "tie"}[side]
        append(file, {**now, "winner": winner, "voter": voter})
        names = {"base": say["base"], name: name}
        revealed = say["was"].format(left=names[now["left"]], right=names[right])
        return None, revealed, standing(file, name, args.needed, say), off, off, off

    with gradio.Blocks(title=say["title"], analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {say['title']}\n{say['blind']}")
        now, voter = gradio.State(None), gradio.State("")
        question = gradio.HTML()
        with gradio.Row(elem_classes="sides"):
            first, second = gradio.HTML(min_height=80), gradio.HTML(min_height=80)
        with gradio.Row():
            buttons = [gradio.Button(say[side], interactive=False) for side in ("left", "tie", "right")]
        revealed, count = gradio.Markdown(), gradio.Markdown(standing(file, name, args.needed, say))
        another = gradio.Button(say["next"], variant="primary")
        with gradio.Accordion(say["own"], open=False):
            text = gradio.Textbox(show_label=False, lines=3, max_length=LONGEST)
            asking = gradio.Button(say["ask"])
        shows = [now, question, first, second, revealed, *buttons]
        blocks.load(lambda: secrets.token_hex(8), None, voter)
        another.click(draw, None, shows, api_visibility="private")
        asking.click(own, text, shows, api_visibility="private")
        for side, button in zip(("left", "tie", "right"), buttons, strict=True):
            button.click(lambda now, voter, side=side: vote(now, voter, side), [now, voter], [now, revealed, count, *buttons],
                         api_visibility="private")  # fmt: skip
    return blocks


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError:
        raise SystemExit("Gradio is not installed here: pip install gradio==6.31.0") from None
    from asking import Unanswered, served
    from compare import questions, run_of
    from compare_page import language

    try:
        name = served(args.url)
    except Unanswered as error:
        raise SystemExit(error.args[0]) from None
    key = os.environ.get("OPENAI_API_KEY", "")
    asked, _ = questions(args, run_of(args.adapter, args.model, name), name)
    file = output_dir("deploy") / "votes" / name / "votes.jsonl"
    blocks = page(args, name, asked, file, TEXTS[language(args.lang)])
    plain = ["system-ui", "sans-serif"]  # the default theme fetches its fonts from elsewhere
    theme = gradio.themes.Default(font=plain, font_mono=["monospace"])
    own = args.host in ("127.0.0.1", "localhost", "::1")
    _, address, _ = blocks.launch(
        server_name=args.host, server_port=args.port or None, auth=None if own else ("vote", key), share=False, quiet=True,
        prevent_thread_lock=True, ssr_mode=False, footer_links=[], theme=theme, css=STYLE, max_file_size=0,
    )  # fmt: skip
    print(f"ready: {address}  votes: {file}", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
