"""Ask one question and watch the thinking: each refused end ("Wait") and a forced end are marked, then the answer.

The default:     python infer.py
Twice "Wait":    python infer.py --num_ignore 2 --question "What is 87 + 48?"
Cut off:         python infer.py --max_think 24
By effort:       python infer.py --effort high
With vLLM:       python infer.py --engine vllm     (without streaming)
"""

from dataclasses import dataclass
from typing import Literal

from budget import EFFORTS, Budget, check_context, context_of, force, hf_engine, vllm_engine
from common import device, models
from common.cli import ModelArgs, arg, parse
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
    budget = Budget(**effort | given, max_answer=args.max_answer)
    run = models.open_run(args.adapter, args.model)
    tokenizer = models.load_tokenizer(run.adapter)
    mark = marks(tokenizer, args.wait)
    prompts = prompt_ids(tokenizer, [{"question": args.question}])
    length = check_context(prompts, budget, mark, context_of(run.base))
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
