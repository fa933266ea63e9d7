"""Ask one question: the base model and the tuned one side by side, what they reason and what they answer apart.

The same weights answer both times, with the adapter switched off and on.

A question:    python infer.py
Your own:      python infer.py --question "Ann has 12 eggs and uses 5. How many are left?" --adapter outputs/r1_grpo/20261122-101500
With vLLM:     python infer.py --engine vllm     (read from vLLM's documentation, not run by us)
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from common.evaluation import generate
from common.models import ModelArgs, load_adapter, load_tokenizer, need_vllm
from common.paths import resolve_model
from common.runs import latest_adapter
from data import prompt_ids
from rewards import NO_TAG, extract

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)
QUESTION = "Mia has 23 marbles and finds 18 more. She gives 9 to her brother. How many marbles does she have now?"


@dataclass
class Args:
    question: str = arg(QUESTION, "what is asked")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    engine: Literal["hf", "vllm"] = arg(
        "hf", "vllm: the base with the adapter loaded beside it; vLLM must be installed"
    )
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    temperature: float = arg(0.0, "0: always the likeliest token; 1: as in training")
    seed: int = arg(3407, "of the sampling")


def parts(text):
    """(reasoning, answer) of a completion; None for what is not there in the form asked for."""
    reasoning = re.search(rf"<reasoning>({NO_TAG})</reasoning>", text, re.S)
    return reasoning and reasoning[1].strip(), extract(text)


def ask_hf(adapter, args, model_args):
    """{"base": text, "tuned": text}"""
    from transformers import set_seed

    model, tokenizer = load_adapter(adapter, model_args)
    how = dict(temperature=args.temperature, top_k=0, top_p=1.0) if args.temperature else {}

    def ask():
        set_seed(args.seed)
        prompts = prompt_ids(tokenizer, [args.question])
        return generate(model, tokenizer, prompts, args.max_new_tokens, 1, model_args.backend, **how)[0]

    with model.disable_adapter():
        base = ask()
    return {"base": base, "tuned": ask()}


def ask_vllm(adapter, args, model_args):
    """The same through vLLM, which keeps the adapter beside the base and adds it where a request names it."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    path = resolve_model(model_args.model or settings["base_model_name_or_path"])
    tokenizer = load_tokenizer(adapter)
    engine = LLM(model=str(path), enable_lora=True, max_lora_rank=max(8, settings["r"]), seed=args.seed)
    how = SamplingParams(
        temperature=args.temperature,
        top_p=1.0,
        max_tokens=args.max_new_tokens,
        seed=args.seed,
        stop_token_ids=[tokenizer.eos_token_id],
    )
    prompt = {"prompt_token_ids": prompt_ids(tokenizer, [args.question])[0]}
    requests = {"base": None, "tuned": LoRARequest("tuned", 1, str(adapter))}
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
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    if args.engine == "vllm":
        need_vllm()
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    print(f"adapter: {adapter}")
    show(args.question, (ask_vllm if args.engine == "vllm" else ask_hf)(adapter, args, model_args))


if __name__ == "__main__":
    main()
