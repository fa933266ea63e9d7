"""Answers one by one, as the course's loop has it, against common/answers.py's batches: tokens a second.

python bench/generation.py --data alpaca.json --model Qwen/Qwen2.5-7B-Instruct
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON list of instruction, input, output")
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--backend", default="hf", choices=["hf", "unsloth"])
    parser.add_argument("--quantization", default="none", choices=["none", "4bit"])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    args = parser.parse_args()
    from alpaca_data import read

    from common import device, hub, models, paths
    from prompt import prompt_ids
    from train import NF4

    paths.load_env()
    backend = device.decide_backend(args.backend)
    import torch

    from common.answers import generate
    from common.speed.graph import decode

    path = hub.resolve_model(args.model)
    tokenizer = models.load_tokenizer(path)
    dtype = torch.bfloat16 if device.has_bf16() else torch.float32
    model = models.load_base(path, backend, NF4 if args.quantization == "4bit" else None, dtype).eval()
    prompts = prompt_ids(tokenizer, read(args.data)[: args.prompts])
    made, first = [], None
    for size in args.batches:
        asked = prompts[:4] if size == 1 else prompts  # one by one: four are enough to know
        generate(
            model, tokenizer, asked[:size], args.max_new_tokens, size, backend, decode=decode
        )  # warms up, and records its step
        start = time.time()
        answers = generate(model, tokenizer, asked, args.max_new_tokens, size, backend, decode=decode)
        seconds = time.time() - start
        tokens = sum(len(ids) for ids in tokenizer(answers, add_special_tokens=False).input_ids)
        rate = len(asked) / seconds
        first = first or rate
        made.append({"backend": backend, "batch": size, "answers_per_s": round(rate, 3), "tokens_per_s": round(tokens / seconds), "ratio": round(rate / first, 1)})  # fmt: skip
        print(json.dumps(made[-1]), flush=True)
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
