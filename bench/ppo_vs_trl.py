"""rlhf_ppo/train_ppo.py against TRL 1.12.0's PPOTrainer, the last TRL that had one: memory, time, and score at equal KL.

    python bench/ppo_vs_trl.py                                                     ours alone
    python bench/ppo_vs_trl.py --trl_python /path/to/venv/bin/python               both
    python bench/ppo_vs_trl.py --score --model MODEL --reward RUN --data pairs.json --trl_python ...
    python bench/ppo_vs_trl.py --shapes tiny --updates 2 --rollout 4 --response 8  a check on a CPU

The venv of --trl_python has trl==1.12.0 and the same torch, transformers and peft as this one:
    python -m venv --system-site-packages VENV && VENV/bin/pip install trl==1.12.0 --no-deps

Speed and memory: models of Qwen2.5's shapes with random weights, which never write an eos, so that every answer has full
length and both sides do the same work. Same backbone, same reward model (ours as adapter, TRL's merged), same prompts,
equal optimizer steps an update, bf16 weights. Sides:

    ours             one backbone, LoRA policy and LoRA value
    ours_full_value  the same with a whole second model as value model, all of it trained, as TRL's
    trl_peft         TRL with peft_config: policy + LoRA, whole reward and value model
    trl_four         TRL's classic mode: policy, reference, reward and value model, all whole

--score trains a real model with both for some seeds, and compares the reward model's score at the KLs that both reach.
One process a measurement. Results: bench/results/ppo_vs_trl.json, a table on the screen.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ppo_vs_trl.json"
SIDES = ("ours", "ours_full_value", "trl_peft", "trl_four")
EOS, PAD, VOCABULARY = 151645, 151643, 151936
SHAPES = {
    "0.5b": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    ),
    "1.5b": dict(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2
    ),
    "tiny": dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ours():
    """The recipe's modules stage, backbone and train_ppo: they are a folder, not a package."""
    sys.path.insert(0, str(HERE.parent / "rlhf_ppo"))
    from common import paths

    paths.load_env()
    import backbone
    import stage
    import train_ppo

    return stage, backbone, train_ppo


# -- what both sides read


def build(shape, work):
    """A model with random weights, a random reward adapter for it, and that adapter merged, under work/<shape>."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = work / shape
    if (folder / "done").exists():
        return folder
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen2Config(
        vocab_size=VOCABULARY, tie_word_embeddings=True, eos_token_id=EOS, pad_token_id=PAD, **SHAPES[shape]
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    torch.set_default_dtype(torch.float32)
    vocabulary = {"<pad>": PAD, "<eos>": EOS, "word": 0}  # nothing is ever put into words here
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="word"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder / "model")
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=torch.bfloat16)
    lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=16, target_modules=PROJECTIONS)
    save_reward(get_peft_model(judge, lora), folder, dict(sft_mean=0.0, sft_std=1.0), tokenizer)
    (folder / "done").touch()
    return folder


def save_reward(judge, folder, units, tokenizer=None):
    """A SEQ_CLS PeftModel as adapter with reward.json (ours) and merged (TRL's), in units of (score - mean) / std."""
    stage, _, _ = ours()
    if not (folder / "reward").exists():
        judge.save_pretrained(folder / "reward")
        made = dict(model="random", fingerprint=stage.fingerprint(folder / "model"), quantization="none", **units)
        (folder / "reward" / "reward.json").write_text(json.dumps(made))
    merged = judge.merge_and_unload()
    merged.score.weight.data /= units["sft_std"]
    merged.save_pretrained(folder / "reward_merged")
    if tokenizer:
        tokenizer.save_pretrained(folder / "reward_merged")


def real(args, work):
    """The same layout for --score: links to the real model and reward run, its merged copy, and the prompts' ids."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    stage, _, _ = ours()
    import data
    from common.models import load_tokenizer

    folder = work / "score"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    path = stage.sft_model(args.model)
    units = stage.read_reward(args.reward, path)
    (folder / "model").symlink_to(path.resolve())
    (folder / "reward").symlink_to(Path(args.reward).resolve())
    tokenizer = load_tokenizer(path)
    base = AutoModelForSequenceClassification.from_pretrained(str(path), num_labels=1, dtype=torch.bfloat16)
    save_reward(PeftModel.from_pretrained(base, args.reward), folder, units)
    pairs, _ = data.read_rows(args.data)
    train_pairs, _ = data.split(pairs, 0.1, 42)
    _, ids = data.encode_prompts(train_pairs, tokenizer, args.prompt, "prompts")
    (folder / "prompts.json").write_text(json.dumps(ids))
    (folder / "units.json").write_text(json.dumps(units))
    (folder / "done").touch()
    return folder


def prompts_of(args, folder, count):
    if (folder / "prompts.json").exists():
        ids = json.loads((folder / "prompts.json").read_text())
        return [ids[i % len(ids)] for i in range(count)]
    draw = random.Random(0)
    return [[draw.randrange(3, 150_000) for _ in range(args.prompt)] for _ in range(count)]


# -- one measurement


def one_ours(args, folder):
    """Updates of train_ppo.py: a list of dicts of seconds, score and KL."""
    import torch

    _, backbone, ppo = ours()
    from common.cli import parse
    from common.models import load_tokenizer

    flags = parse(ppo.__file__, ppo.DEFAULTS, {}, ppo.Args, argv=[])
    chosen = dict(rollout_size=args.rollout, epochs=args.epochs, minibatches=1, micro_batch_size=args.micro)
    chosen |= dict(max_new_tokens=args.response, seed=args.seed, bf16=True, kl_coef=args.kl_coef)
    chosen |= dict(learning_rate=args.learning_rate, value_learning_rate=args.learning_rate)
    for name, value in chosen.items():
        setattr(flags, name, value)
    tokenizer = load_tokenizer(folder / "model")

    class FullValue(ppo.Backbone):
        """With a copy of the reward model as value model, all of its weights trained."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            whole = backbone.load_backbone(folder / "model", flags)
            whole = backbone.add_adapter(whole, "reward", folder / "reward").merge_and_unload()
            self.whole = whole.model
            for parameter in self.whole.parameters():
                parameter.requires_grad = True
            head = {n: p for n, p in self.value_parameters.items() if n.startswith("value_head")}
            self.value_parameters = dict(self.whole.named_parameters()) | head

        def values(self, prompts, responses, pad):
            states = backbone.response_states(self.whole, prompts, responses, pad)
            return self.value_head(states.float())[:, 0]

    kind = FullValue if args.one == "ours_full_value" else ppo.Backbone
    units = json.loads((folder / "reward" / "reward.json").read_text())
    net = kind(folder / "model", folder / "reward", units, flags)
    groups = [list(each.values()) for each in (net.policy_parameters, net.value_parameters)]
    optimizer = torch.optim.AdamW(
        [{"params": each, "lr": args.learning_rate} for each in groups], eps=1e-5, weight_decay=0.0
    )
    prompts, logs = prompts_of(args, folder, args.rollout * args.updates), []
    for update in range(1, args.updates + 1):
        began = clock()
        batch = prompts[(update - 1) * args.rollout : update * args.rollout]
        roll = ppo.rollout(net, tokenizer, batch, flags, args.kl_coef)
        rolled = clock()
        learnt = ppo.optimize(net, optimizer, roll, tokenizer.pad_token_id, flags, update)
        ended = clock()
        seconds = dict(generate=roll["metrics"]["s_generate"], rollout=rolled - began, update=ended - rolled)
        tokens = sum(map(len, roll["responses"]))
        penalty = flags.eos_penalty * (1 - roll["metrics"]["eos_rate"])
        logs.append({**seconds, "total": ended - began, "tokens": tokens, "kl": roll["metrics"]["kl"],
                     "score": roll["metrics"]["score"] - penalty, "grad_policy": learnt["grad_policy"]})  # fmt: skip
    return logs, sum(p.numel() for each in groups for p in each)


def one_trl(args, folder):
    """The same by TRL 1.12.0, in a venv that has it."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or "<|endoftext|>"
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.rollout // args.micro,
        num_mini_batches=1,  # more of them are ignored: the optimizer steps once a pass
        num_ppo_epochs=args.epochs,
        total_episodes=args.rollout * args.updates,
        local_rollout_forward_batch_size=args.trl_forward,
        response_length=args.response,
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=args.kl_coef,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=args.seed,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    where = dict(dtype=torch.bfloat16, device_map={"": 0} if torch.cuda.is_available() else None)
    policy = AutoModelForCausalLM.from_pretrained(folder / "model", **where)
    peft = LoraConfig(r=16, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    reference = AutoModelForCausalLM.from_pretrained(folder / "model", **where) if args.one == "trl_four" else None
    judge, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward_merged", num_labels=1, **where)
        for _ in "rv"
    )
    for model in (judge, value):
        model.config.pad_token_id = tokenizer.pad_token_id
    stamps, logs, seen = [], [], []
    generate, whiten = module.batch_generation, module.masked_whiten

    def timed_generation(*arguments, **more):
        stamps.append(clock())
        made = generate(*arguments, **more)
        stamps.append(clock())
        seen.append(made[0][:, arguments[1].shape[1] :])
        return made

    def timed_whitening(*arguments, **more):  # the last thing that a rollout does
        made = whiten(*arguments, **more)
        stamps.append(clock())
        return made

    module.batch_generation, module.masked_whiten = timed_generation, timed_whitening

    class Clock(TrainerCallback):
        def on_log(self, _, state, control, logs=None, **__):
            self.logs = logs

        def on_step_end(self, *_, **__):
            ended = clock()
            begun, generated, rolled = stamps[-3:]
            answers = seen.pop().tolist()
            eos = tokenizer.eos_token_id
            tokens = sum(row.index(eos) + 1 if eos in row else len(row) for row in answers)
            offset = 0.0
            if (folder / "units.json").exists():
                units = json.loads((folder / "units.json").read_text())
                offset = units["sft_mean"] / units["sft_std"]
            logs.append({"generate": generated - begun, "rollout": rolled - begun, "update": ended - rolled,
                         "total": ended - begun, "tokens": tokens, "kl": self.logs["objective/kl"],
                         "score": self.logs["objective/scores"] - offset})  # fmt: skip

    rows = [{"input_ids": ids} for ids in prompts_of(args, folder, args.rollout * args.updates)]
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=judge,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[: args.micro]),
        peft_config=peft if args.one == "trl_peft" else None,
        callbacks=[Clock()],
    )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    return logs, trained


def clock():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(args, folder):
    """One side, in this process: a dict of what was seen."""
    import resource
    from importlib.metadata import version

    import torch

    logs, trained = (one_trl if args.one.startswith("trl") else one_ours)(args, folder)
    later = logs[1:] or logs  # the first update compiles, records and fills caches
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {f"s_{name}": round(statistics.median(log[name] for log in later), 3)
             for name in ("generate", "rollout", "update", "total")}  # fmt: skip
    return found | {
        "side": args.one,
        "shape": folder.name,
        "tokens_per_s": round(statistics.median(log["tokens"] / log["generate"] for log in later)),
        "peak_gb": round(peak / 1e9, 2),
        "trained": trained,
        "seed": args.seed,
        "logs": [{name: log[name] for name in ("kl", "score", "total")} for log in logs],
        "asked": {n: getattr(args, n) for n in ("rollout", "prompt", "response", "epochs", "micro", "updates", "trl_forward")},
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }  # fmt: skip


# -- tables


def speed_table(results):
    """The newest measurement of each shape, --micro and side, with the ratio to TRL's peft mode."""
    newest = {(r["shape"], r["asked"]["micro"], r["side"]): r for r in results if r["shape"] != "score"}
    lines = ["| shape | micro | side | s an update | rollout (generation) | optimizer steps | tokens/s | peak GB | trained | time x | memory x |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for (shape, micro, side), row in sorted(newest.items(), key=lambda item: (item[0][:2], SIDES.index(item[0][2]))):
        peer = newest.get((shape, micro, "trl_peft"))
        ratios = [f"{row[n] / peer[n]:.2f}" if peer else "" for n in ("s_total", "peak_gb")]
        lines.append(
            f"| {shape} | {micro} | {side} | {row['s_total']:.2f} | {row['s_rollout']:.2f} ({row['s_generate']:.2f}) | {row['s_update']:.2f} "
            f"| {row['tokens_per_s']:,} | {row['peak_gb']:.2f} | {row['trained'] / 1e6:.1f} M | {ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines)


def score_at(logs, kl):
    """Score where a run first reaches some KL, from means over five updates; None where it does not."""
    means = [{name: statistics.fmean(log[name] for log in logs[max(0, i - 2) : i + 3]) for name in ("kl", "score")}
             for i in range(len(logs))]  # fmt: skip
    for before, after in zip(means, means[1:], strict=False):
        if before["kl"] <= kl < after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before["score"] + share * (after["score"] - before["score"])
    return None


def score_table(results):
    """Mean score over seeds, with its spread, at KLs that runs reach."""
    runs = {}
    for row in results:
        if row["shape"] == "score":
            runs[(row["side"], row["seed"])] = row["logs"]
    sides = [side for side in SIDES if any(name == side for name, _ in runs)]
    lines = ["| KL, nats | " + " | ".join(sides) + " |", "|" + "---|" * (1 + len(sides))]
    for kl in (0.5, 1, 2, 4, 8, 16):
        cells = []
        for side in sides:
            at = [score_at(logs, kl) for (name, _), logs in runs.items() if name == side]
            at = [value for value in at if value is not None]
            spread = f" ± {statistics.stdev(at):.2f}" if len(at) > 1 else ""
            cells.append(f"{statistics.fmean(at):.2f}{spread} ({len(at)} runs)" if at else "")
        if any(cells):
            lines.append(f"| {kl} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.5b,1.5b", help=f"which of {','.join(SHAPES)}")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"which of {','.join(SIDES)}; trl_* need --trl_python")
    parser.add_argument("--trl_python", type=Path, help="the python of a venv with trl==1.12.0")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rollout", type=int, default=64, help="answers an update")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (--score: at most)")
    parser.add_argument("--response", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--epochs", type=int, default=4, help="optimizer steps an update, for both")
    parser.add_argument("--micro", type=int, default=8, help="answers at once in forward and backward, for both")
    parser.add_argument(
        "--trl_forward", type=int, default=64, help="TRL's local_rollout_forward_batch_size (its default)"
    )
    parser.add_argument("--kl_coef", type=float, default=0.05)
    parser.add_argument("--learning_rate", type=float, default=1e-5, help="of every trained weight, on both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", action="store_true", help="score at equal KL with a real model, for --seeds seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--reward", help="a run of train_reward.py on that model")
    parser.add_argument("--data", help="preference pairs, whose prompts are used")
    parser.add_argument("--work", type=Path, help="where the models are built (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only the tables, from --out")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one side
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        args.out.write_text(json.dumps(measure(args, args.folder)))
        return
    sides = args.sides.split(",")
    if wrong := set(sides) - set(SIDES) | set(args.shapes.split(",")) - set(SHAPES):
        raise SystemExit(f"not known: {', '.join(wrong)}. Sides: {', '.join(SIDES)}; shapes: {', '.join(SHAPES)}")
    if args.rollout % args.micro:
        raise SystemExit(f"--rollout {args.rollout} is not a multiple of --micro {args.micro}, which TRL needs.")
    if not args.trl_python:
        sides = [side for side in sides if not side.startswith("trl")]
    if args.score and not (args.model and args.reward and args.data):
        raise SystemExit("--score needs --model, --reward and --data.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.table:
        with tempfile.TemporaryDirectory() as scratch:
            run_all(args, sides, args.work or Path(scratch))
    results = load(args.out)
    for make in (speed_table, score_table):
        text = make(results)
        if text.count("\n") > 1:
            print(text + "\n")


def run_all(args, sides, work):
    work.mkdir(parents=True, exist_ok=True)
    folders = [real(args, work)] if args.score else [build(shape, work) for shape in args.shapes.split(",")]
    seeds = range(args.seed, args.seed + args.seeds) if args.score else [args.seed]
    for folder in folders:
        for side in sides:
            for seed in seeds:
                python = args.trl_python if side.startswith("trl") else sys.executable
                command = [
                    python,
                    __file__,
                    "--one",
                    side,
                    "--folder",
                    folder,
                    "--seed",
                    seed,
                    "--out",
                    work / "one.json",
                ]
                for name in ("updates", "rollout", "prompt", "response", "epochs", "micro", "trl_forward", "kl_coef", "learning_rate"):  # fmt: skip
                    command += [f"--{name}", getattr(args, name)]
                began, log = time.time(), args.out.parent / f"ppo_vs_trl_{folder.name}_{side}.log"
                with open(log, "w") as file:
                    code = subprocess.run([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=os.environ)
                if code.returncode or not (work / "one.json").exists():
                    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
                    print(
                        f"{folder.name} {side}: failed with code {code.returncode}, see {log}:\n  " + "\n  ".join(tail)
                    )
                    continue
                result = json.loads((work / "one.json").read_text())
                (work / "one.json").unlink()
                log.unlink()
                args.out.write_text(json.dumps([*load(args.out), result], indent=1) + "\n")
                print(f"{folder.name} {side} seed {seed}: {result['s_total']} s an update, {result['peak_gb']} GB "
                      f"({time.time() - began:.0f} s)", flush=True)  # fmt: skip


def load(file):
    return json.loads(file.read_text()) if file.exists() else []


if __name__ == "__main__":
    main()
