"""Who writes how fast: PPO's rollouts, best-of-n and s1's budgets by vLLM and by our decoder; and what is left in 24 GB.

    python bench/rollout_speed.py --model PATH                       all parts, in 150 s
    python bench/rollout_speed.py --model PATH --only cap24 lora     these
    python bench/rollout_speed.py --model PATH --small               on a CPU, with tests/fake_vllm.py in vLLM's place

A model of Qwen2.5's shape with random weights will do, and needs no tokenizer: ids in, ids out.

    rollouts  one vLLM beside the backbone, as train_ppo.py has it: 64 answers of 128 tokens by the policy (with the transfer of
              its weights, and log-probabilities) and by the SFT model, by both engines; whether the update arrived
              (engine_slope); then 32 problems x budgets of 64, 256 and 512 thinking tokens, vLLM's in one batch
    cap24     4-bit weights, 24 GB at most, 24 completions of 512 tokens: common/speed/graph.py, then transformers' compiled
              static cache
    lora      the budgets once more by s1_scaling's own vLLM, the adapter beside the base and not merged

A process for each part, one after the other; what does not fit into --seconds is skipped, and said. Every line is written as
it is measured: bench/results/rollout_speed.jsonl.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from grpo_speed import emit, gpu, now, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = {"rollouts": 90, "cap24": 75, "lora": 70}  # seconds below which a part is not begun
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def sizes(args):
    if args.small:
        return SimpleNamespace(
            prompt=10, rows=4, new=8, problems=2, budgets=(3, 6, 9), answer=2, cap_rows=2, cap_new=8, r=4
        )
    return SimpleNamespace(
        prompt=88, rows=64, new=128, problems=32, budgets=(64, 256, 512), answer=32, cap_rows=24, cap_new=512, r=16
    )


class Ids:
    """All that sampling asks of a tokenizer. The end token is one that random weights hardly ever draw."""

    pad_token_id = 0

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.eos_token_id = vocabulary - 1

    def __len__(self):
        return self.vocabulary


def prompts_of(count, length):
    return [[100 + (7919 * row + 104_729 * place) % 900 for place in range(length)] for row in range(count)]


def left(args, needed, what):
    """Whether `needed` seconds are left; else says what is skipped."""
    if time.time() + needed < args.until:
        return True
    emit(args, what=f"skipped: {what}", left=args.until - time.time())
    return False


def measure(args, what, work, **facts):
    """work() -> lists of token ids. One line: how many, how long."""
    start = now()
    rows = work()
    seconds, tokens = now() - start, sum(map(len, rows))
    emit(
        args, what=what, rows=len(rows), tokens=tokens, seconds=seconds, tokens_per_s=tokens / seconds, **facts, **gpu()
    )
    return rows


def start(args):
    """(folder, sizes, ids, dtype), with the repository's modules to be found."""
    # s1_scaling before rlhf_ppo: both have a prompt.py, and only s1_scaling's is asked for.
    sys.path[:0] = [str(ROOT), str(ROOT / "s1_scaling"), str(ROOT / "rlhf_ppo")]
    if args.small:
        sys.path.append(str(ROOT / "tests"))
        import fake_vllm

        fake_vllm.install(sys.modules)
    import torch

    from common import device

    device.decide_backend("hf")
    folder = Path(args.model).resolve()
    config = json.loads((folder / "config.json").read_text())
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return folder, sizes(args), Ids(config["vocab_size"]), dtype


# -- the budgets


def budgets_of(size, tokens):
    """(prompts, mark, budgets' lists): one list of budgets for each size."""
    from budget import Budget

    stop = {tokens.eos_token_id, tokens.pad_token_id}
    ids = dict(open=[11, 12], answer=[13, 14], forced=[13, 14, 15], newline=[16], wait=[17])
    mark = SimpleNamespace(**ids, stop=stop, breaks=lambda token: False)
    prompts = prompts_of(size.problems, size.prompt)
    return prompts, mark, [[Budget(most, 0, size.answer)] * len(prompts) for most in size.budgets]


def longest(size):
    return size.prompt + max(size.budgets) + 8 + size.answer


def texts(made):
    return [row["think"] + row["answer"] for row in made]


def by_vllm_in_one(args, size, tokens, engines, what):
    from budget import force

    prompts, mark, budgets = budgets_of(size, tokens)

    def work():
        return texts(force(engines(0.0), prompts * len(budgets), mark, sum(budgets, [])))

    measure(args, what, work)


# -- the parts


def part_rollouts(args):
    folder, size, tokens, dtype = start(args)
    import torch
    from peft import LoraConfig, get_peft_model

    from backbone import WHOLE, answers_of, response_logprobs
    from budget import by_vllm, force, hf_engine
    from common import models
    from common.cli import LINEAR
    from common.speed import engine as beside
    from common.speed import graph, lora
    from sampler import Sampler, choose, correction

    begin = now()
    base = models.load_base(folder, "hf", None, dtype)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=size.r, lora_alpha=size.r, target_modules=LINEAR))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 3e-3)  # an update of about 0.15 nats
    model.save_pretrained(args.adapter)
    lora.fuse(model, mlp=False)  # as in train_ppo.py
    model.eval()
    emit(args, what="backbone loaded", seconds=now() - begin)
    room = longest(size), len(size.budgets) * size.problems
    asked = SimpleNamespace(rollouts="auto", quantization="none", bf16=None)
    training = dict(tokens=8 * (size.prompt + size.new), r=size.r, checkpointing=False, code="plain", logits=512 * 12)
    found = choose(asked, folder, *room, **training) or ((0.3, False) if args.small else None)
    if not found:
        return emit(args, what="vLLM does not fit")
    begin = now()
    vllm = Sampler(found, folder, dtype, *room, seed=0, scored=True)
    emit(args, what="vLLM started", seconds=now() - begin, share=found[0], sleeps=found[1], **gpu())
    prompts = prompts_of(size.rows, size.prompt)

    def ask(adapter, engine):
        with torch.no_grad():
            return answers_of(model, adapter, tokens, prompts, size.new, size.rows, sampler=engine, **WHOLE)

    vllm.scored = False
    measure(args, "best-of-n, vLLM, first call", lambda: ask(None, vllm))
    measure(args, "best-of-n, vLLM", lambda: ask(None, vllm))
    vllm.scored = True
    begin = now()
    vllm.wake(model, "default")
    emit(args, what="the policy's weights to vLLM", seconds=now() - begin)
    vllm.rest()
    for what in ("PPO, vLLM, first call", "PPO, vLLM"):
        answers = measure(args, what, lambda: ask("default", vllm))
    model.set_adapter("default")
    lengths = torch.tensor([len(row) for row in answers], device=model.device)
    mask = (torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]).float()
    pieces = [slice(n, n + 16) for n in range(0, len(answers), 16)]
    with torch.no_grad():
        flat = torch.cat([response_logprobs(model, prompts[n], answers[n], 0, 1.0) for n in pieces])
    begin, logprobs = now(), mask.new_zeros(mask.shape).masked_scatter(mask.bool(), flat)
    _, seen = correction(vllm, model, prompts, answers, logprobs, mask, 1.0, 0, 16)
    emit(args, what="the slope", seconds=now() - begin, every=beside.CHECK, **seen)
    vllm.wake(model, "default")
    by_vllm_in_one(args, size, tokens, by_vllm(vllm.llm, None, len(tokens)), "budgets, vLLM, merged")
    for adapter, what in (("default", "PPO"), (None, "best-of-n")):
        for call in (", first call", ""):
            if left(args, 10, f"{what}, our decoder"):
                measure(args, f"{what}, our decoder{call}", lambda adapter=adapter: ask(adapter, None))
    model.set_adapter("default")
    model.__dict__.pop("_decoders", None)
    problems, mark, budgets = budgets_of(size, tokens)
    gen = hf_engine(model, tokens, "hf", 256, decode=graph.decode)
    for most, each in zip(size.budgets, budgets, strict=True):
        if left(args, 12 + most / 16, f"budget {most}, our decoder"):
            measure(args, f"budget {most}, our decoder", lambda each=each: texts(force(gen, problems, mark, each)))


def part_cap24(args):
    folder, size, tokens, dtype = start(args)
    import torch
    from transformers import StoppingCriteriaList

    from common import models
    from common.speed import graph

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_per_process_memory_fraction(24e9 / torch.cuda.mem_get_info()[1])
    begin = now()
    model = models.load_base(folder, "hf", NF4 if cuda else None, dtype).eval()
    emit(args, what="4-bit model loaded" if cuda else "model loaded", seconds=now() - begin, **gpu(reset=True))
    prompts = prompts_of(size.cap_rows, size.prompt)
    with torch.no_grad():
        begin, width = now(), -(-size.prompt // graph.ROUND) * graph.ROUND
        decoder = graph.Decoder(model, len(prompts), width, size.cap_new, 1.0, [-1], 0, cuda)
        emit(args, what="our decoder: recorded", seconds=now() - begin)
        measure(args, "our decoder", lambda: decoder.run(prompts))
        if left(args, 50, "our decoder, once more"):
            measure(args, "our decoder", lambda: decoder.run(prompts))
    ids = torch.tensor(prompts, device=model.device)
    how = dict(
        max_new_tokens=size.cap_new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        eos_token_id=tokens.eos_token_id, cache_implementation="static",
    )  # fmt: skip

    def ask(**more):
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how | more)[
                :, ids.shape[1] :
            ].tolist()

    def enough(so_far, scores, **_):
        return torch.full((len(so_far),), so_far.shape[1] >= size.prompt + 8, device=so_far.device)

    begin = now()
    ask(stopping_criteria=StoppingCriteriaList([enough]))  # a few tokens; the compiled step is that of the whole length
    emit(args, what="static cache: compiled", seconds=now() - begin, compiled=hasattr(model, "_compiled_call"))
    for _ in range(2):
        if left(args, 12, "static cache"):
            measure(args, "static cache", ask)


def part_lora(args):
    folder, size, tokens, dtype = start(args)
    from budget import choose_engine, vllm_engine

    if not (args.adapter / "adapter_config.json").exists():
        from peft import LoraConfig, get_peft_model

        from common import device, models
        from common.cli import LINEAR

        how = LoraConfig(task_type="CAUSAL_LM", r=size.r, lora_alpha=size.r, target_modules=LINEAR)
        model = get_peft_model(models.load_base(folder, "hf", None, dtype), how)
        model.save_pretrained(args.adapter)
        del model
        device.empty_cache()
    share = choose_engine(SimpleNamespace(engine="auto", quantization="none", backend="hf"), folder) or 0.9 * args.small
    if not share:
        return emit(args, what="vLLM does not fit")
    begin, rows = now(), len(size.budgets) * size.problems
    engines = vllm_engine(folder, args.adapter, tokens, longest(size), rows, share)
    emit(args, what="vLLM started", seconds=now() - begin, share=share, **gpu())
    for what in ("budgets, vLLM, LoRA, first call", "budgets, vLLM, LoRA"):
        if left(args, 8, what):
            by_vllm_in_one(args, size, tokens, engines, what)


# -- all parts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder with config.json and weights")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--out", default=str(HERE / "results" / "rollout_speed.jsonl"))
    parser.add_argument("--seconds", type=float, default=150, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, tests/fake_vllm.py for vLLM")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = str(Path(args.out).resolve())
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    model = Path(args.model).resolve()
    args.adapter = Path(tempfile.gettempdir()) / f"rollout_speed_{model.parent.name}_{model.name}_r{sizes(args).r}"
    if args.part:
        return globals()[f"part_{args.part}"](args)
    args.passed, args.until = sys.argv[1:], time.time() + args.seconds
    seen = Path(args.out).stat().st_size if Path(args.out).exists() else 0
    for part in args.only:
        args.part = part
        if args.small or left(args, PARTS[part], f"--only {part}"):
            run(args, part, __file__, max(1, args.until - time.time()), "--until", str(args.until))
    with open(args.out) as file:
        file.seek(seen)
        for line in map(json.loads, file):
            facts = ", ".join(
                f"{name} {value}" for name, value in line.items() if name not in ("part", "at", "gpu", "what")
            )
            print(f"{line['part']:8} {line['what']}: {facts}")


if __name__ == "__main__":
    main()
