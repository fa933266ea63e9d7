"""Ask one question and watch the thinking: each refused end ("Wait") and a forced end are marked, then the answer.

The default:     python infer.py
Twice "Wait":    python infer.py --num_ignore 2 --question "What is 87 + 48?"
Cut off:         python infer.py --max_think 24
By effort:       python infer.py --effort high
By difficulty:   python infer.py --suggest
With vLLM:       python infer.py --engine vllm     (without streaming)
"""

from dataclasses import dataclass
from typing import Literal

import suggest
from budget import EFFORTS, Budget, check_context, context_of, force, hf_engine, room, vllm_engine
from common import device, models
from common.cli import ModelArgs, arg, parse
from data import load_splits, own_data
from prompt import QUESTION, WAIT, answer_text, marks, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    question: str = arg(QUESTION, "what is asked")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    effort: Literal["low", "medium", "high"] = arg("medium", "a budget by name: 64 / 512 / 2048 and two Waits")
    max_think: int | None = arg(None, "most thinking tokens, injected ones included (default: the effort's)")
    num_ignore: int | None = arg(None, "ends of thinking that are refused (default: the effort's)")
    suggest: bool = arg(False, "at most as much thinking as training questions like it took, and a quarter more")
    max_answer: int = arg(64, "longest answer, in tokens")
    wait: str = arg(WAIT, "what is put in place of a refused end")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    engine: Literal["hf", "vllm"] = arg("hf", "vllm writes without streaming; it must be installed")
    seed: int = arg(3407, "of the sampling")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.engine == "vllm":
        device.need_vllm()
    effort = EFFORTS[args.effort]
    given = {name: getattr(args, name) for name in effort if getattr(args, name) is not None}
    run = models.open_run(args.adapter, args.model, record=args.suggest)
    tokenizer = models.load_tokenizer(run.adapter)
    mark = marks(tokenizer, args.wait)
    prompts = prompt_ids(tokenizer, [{"question": args.question}], run.texts)
    budget, context = Budget(**effort | given, max_answer=args.max_answer), context_of(run.base)
    if args.max_think is None:
        if args.suggest:
            trained = load_splits(own_data(run.arguments))[0]
            (budget.max_think,) = suggest.budgets(tokenizer, trained, [args.question])
        budget.max_think = min(budget.max_think, room(prompts, budget, mark, context))  # an effort is a wish
    length = check_context(prompts, budget, mark, context)
    print(f"adapter: {run.adapter}\n{args.question}   "
          f"[at most {budget.max_think} thinking tokens, {budget.num_ignore} Waits]")  # fmt: skip
    from transformers import set_seed

    from watch import watcher

    streamer, watch = watcher(mark, tokenizer)
    if args.engine == "vllm":
        gen = vllm_engine(run.base, run.adapter, tokenizer, length, rows=1, seed=args.seed)(args.temperature)
    else:
        model = models.load_run(run, args)[0]
        gen = hf_engine(model, tokenizer, args.backend, 1, args.temperature, streamer)
        set_seed(args.seed)
    (row,) = force(gen, prompts, mark, budget, watch)
    if args.engine == "vllm":
        print(tokenizer.decode(row["think"]) + "\n" + answer_text(tokenizer, row["answer"]), end="")
    print(
        f"\n{len(row['think'])} thinking tokens ({len(row['waits'])} x {args.wait!r} put in, ended by "
        f"{'itself' if row['reason'] == 'stop' else 'the budget'}), {len(row['answer'])} of the answer"
    )


if __name__ == "__main__":
    main()
