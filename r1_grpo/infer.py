"""Ask one question: the base model and the tuned one side by side, what they reason and what they answer apart.

The same weights answer both times, with the adapter switched off and on.

A question:    python infer.py
Your own:      python infer.py --question "Ann has 12 eggs and uses 5. How many are left?" --adapter outputs/r1_grpo/20261122-101500
With vLLM:     python infer.py --engine vllm     (read from vLLM's documentation, not run by us)
"""

import re
from dataclasses import dataclass
from typing import Literal

from common import device, models
from common.cli import ModelArgs, arg, parse
from common.files import read_json
from prompt import prompt_ids
from rewards import NO_TAG, extract

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)
QUESTION = "Mia has 23 marbles and finds 18 more. She gives 9 to her brother. How many marbles does she have now?"


@dataclass
class Args(ModelArgs):
    question: str = arg(QUESTION, "what is asked")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    engine: Literal["hf", "vllm"] = arg(
        "hf", "vllm: the base with the adapter loaded beside it; vLLM must be installed"
    )
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    temperature: float = arg(0.0, "0: always the likeliest token; 1: as in training")
    top_p: float = arg(1.0, "sample from the likeliest tokens with so much probability together")
    seed: int = arg(3407, "of the sampling")


def parts(text):
    """(reasoning, answer) of a completion; None for what is not there in the form asked for."""
    reasoning = re.search(rf"<reasoning>({NO_TAG})</reasoning>", text, re.S)
    return reasoning and reasoning[1].strip(), extract(text)


def ask_hf(run, args):
    """{"base": text, "tuned": text}"""
    model, tokenizer = models.load_run(run, args)
    from transformers import set_seed

    from common.answers import generate

    prompts = prompt_ids(tokenizer, [{"question": args.question}], run.texts)
    how = dict(temperature=args.temperature, top_k=0, top_p=args.top_p) if args.temperature else {}

    def ask():
        set_seed(args.seed)
        return generate(model, tokenizer, prompts, args.max_new_tokens, 1, args.backend, **how)[0]

    with model.disable_adapter():
        base = ask()
    return {"base": base, "tuned": ask()}


def ask_vllm(run, args):
    """The same through vLLM, which keeps the adapter beside the base and adds it where a request names it."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    tokenizer = models.load_tokenizer(run.adapter)
    rank = read_json(run.adapter / "adapter_config.json")["r"]
    engine = LLM(model=str(run.base), enable_lora=True, max_lora_rank=max(8, rank), seed=args.seed)
    how = SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_new_tokens,
        seed=args.seed,
        stop_token_ids=[tokenizer.eos_token_id],
    )
    prompt = {"prompt_token_ids": prompt_ids(tokenizer, [{"question": args.question}], run.texts)[0]}
    requests = {"base": None, "tuned": LoRARequest("tuned", 1, str(run.adapter))}
    return {
        name: engine.generate([prompt], how, lora_request=request)[0].outputs[0].text.strip()
        for name, request in requests.items()
    }


def show(question, answers):
    print(f"\n{question}")
    for name, text in answers.items():
        reasoning, answer = parts(text)
        print(f"{'=' * 100}\n{name}")
        if reasoning is None and answer is None:
            print(f"(not in the form)\n{text or '(empty)'}")
            continue
        print(f"reasoning: {reasoning or '(none in the form)'}\nanswer:    {answer or '(none in the form)'}")
    print("=" * 100)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.engine == "vllm":
        device.need_vllm()
    run = models.open_run(args.adapter, args.model)
    print(f"adapter: {run.adapter}")
    show(args.question, (ask_vllm if args.engine == "vllm" else ask_hf)(run, args))


if __name__ == "__main__":
    main()
