"""Ask one question and watch the thinking: each refused end ("Wait") and a forced end are marked, then the answer.

The default:     python infer.py
Twice "Wait":    python infer.py --num_ignore 2 --question "What is 87 + 48?"
Cut off:         python infer.py --max_think 24
By effort:       python infer.py --effort high
With vLLM:       python infer.py --engine vllm     (read from vLLM's documentation, not run by us)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budget import (
    ANSWER,
    EFFORTS,
    WAIT,
    Budget,
    answer_of,
    check_context,
    force,
    hf_engine,
    marks,
    prompt_ids,
    vllm_engine,
)
from common.cli import arg, parse
from common.models import ModelArgs, load_adapter, load_tokenizer, need_vllm
from common.paths import resolve_model
from common.runs import latest_adapter

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    question: str = arg("How many r in raspberry?", "what is asked")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    effort: Literal["low", "medium", "high"] = arg("medium", "a budget by name: 64 / 512 / 2048 and two Waits")
    max_think: int | None = arg(None, "most thinking tokens, injected ones included (default: the effort's)")
    num_ignore: int | None = arg(None, "ends of thinking that are refused (default: the effort's)")
    max_answer: int = arg(64, "most tokens of the answer")
    wait: str = arg(WAIT, "what is put in place of a refused end")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    engine: Literal["hf", "vllm"] = arg("hf", "vllm writes without streaming; it must be installed")
    seed: int = arg(3407, "of the sampling")


def printer(mark, tokenizer):
    """(streamer for generate, watch for force()): the model's text as it is written, and what is put in between."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            print(text, end="", flush=True)

    waits = []

    def watch(event, _, ids):
        if event == "open":
            print("thinking:")
        elif event == "wait":
            waits.append(ids)
            print(f"\n[Wait {len(waits)}: an end of thinking was refused] {tokenizer.decode(ids)}", end="", flush=True)
        else:
            if ids[-len(mark.forced) :] == mark.forced:
                print("\n[the budget is spent: thinking was ended]", end="")
            print("\n" + tokenizer.decode(ids).split(ANSWER)[-1], end="", flush=True)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True), watch


def context_of(path):
    """Most tokens a model was made for; None where its config does not say."""
    return json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    if args.engine == "vllm":
        need_vllm()
    effort = EFFORTS[args.effort]
    given = {name: getattr(args, name) for name in effort if getattr(args, name) is not None}
    budget = Budget(**effort | given, max_answer=args.max_answer)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    tokenizer = load_tokenizer(adapter)
    mark = marks(tokenizer, args.wait)
    base = model_args.model or json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    prompts = prompt_ids(tokenizer, [args.question])
    check_context(prompts, budget, mark, context_of(resolve_model(base)))
    print(
        f"adapter: {adapter}\n{args.question}   [at most {budget.max_think} thinking tokens, {budget.num_ignore} Waits]"
    )
    streamer, watch = printer(mark, tokenizer)
    if args.engine == "vllm":
        gen = vllm_engine(resolve_model(base), adapter, args.seed)(args.temperature)
    else:
        from transformers import set_seed

        model = load_adapter(adapter, model_args)[0]
        gen = hf_engine(model, tokenizer, model_args.backend, 1, args.temperature, streamer)
        set_seed(args.seed)
    (row,) = force(gen, prompts, mark, budget, watch)
    if args.engine == "vllm":
        print(tokenizer.decode(row["think"]) + "\n" + answer_of(row, tokenizer), end="")
    print(
        f"\n{len(row['think'])} thinking tokens ({len(row['waits'])} x {args.wait!r} put in, ended by "
        f"{'itself' if row['reason'] == 'stop' else 'the budget'}), {len(row['answer'])} of the answer"
    )


if __name__ == "__main__":
    main()
