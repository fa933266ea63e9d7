"""A GRPO update by stock TRL with vLLM, by ours, and what each way of sampling takes: seconds, tokens a second, memory.

    python bench/grpo_speed.py --model PATH                    all parts, in the order of PARTS
    python bench/grpo_speed.py --model PATH --only vllm ours   these parts
    python bench/grpo_speed.py --show                          the table of what was measured before

A model of Qwen2.5's shape with random weights will do: nothing is learned here, completions have a fixed length. 24
completions (4 prompts x 6) of 512 tokens, bfloat16, LoRA r 32 on all seven projections, KL to the base, one GPU.

    vllm      vLLM alone, 24 and 96 completions: what sampling can cost at best
    trl       stock TRL, its vLLM colocated, PEFT as it is; updates, cut into sampling, weights to vLLM, training
    ours      r1_grpo with --rollouts vllm: fused LoRA, chunked log-probabilities, weights merged without rounding bias;
              then without gradient checkpointing; then how much of small updates arrives in vLLM (engine_slope), by TRL's
              merge and by ours
    hf        r1_grpo with --rollouts hf: our decoder
    decoder   sampling alone: common/speed/graph.py
    batch     sampling alone: transformers' generate_batch (continuous batching)
    static    sampling alone: transformers' generate with a compiled static cache
    cap24     r1_grpo with --rollouts hf in 4 bits, in 24 GB of memory
    unsloth   stock Unsloth, --fast_inference: its own vLLM with the weights shared

and, where there are two GPUs, only if they are asked for:

    both      stock TRL, vLLM colocated on both cards, half of the completions each
    server    stock TRL, vLLM on the second card and training on the first; then the same with one update of overlap: a
              thread samples what the next update will train on, by the weights of now

One process a part, ended after --timeout seconds. Every line is written as it is measured: bench/results/grpo_speed.jsonl.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "r1_grpo"
PARTS = ("vllm", "trl", "ours", "hf", "decoder", "batch", "static", "cap24", "unsloth")
TWO_CARDS = ("both", "server")
WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for",
    "on", "are", "as", "with", "his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but"]  # fmt: skip
GROUP, MICRO = 6, 6
TRAINED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def emit(args, **facts):
    """One more line of the results, on the disk before anything else happens."""
    facts = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}
    line = json.dumps({"part": args.part, "at": round(time.time()), **facts})
    with open(args.out, "a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def now():
    """Seconds, when what was sent to the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gpu(reset=False):
    """The card, and the most that torch took of it since the last reset, in GB."""
    import torch

    if not torch.cuda.is_available():
        return {}
    found = {"gpu": torch.cuda.get_device_name(), "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    free, total = torch.cuda.mem_get_info()
    found["taken_gb"] = (total - free) / 1e9
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return found


def prompts_of(tokenizer, args, count):
    """`count` prompts as texts, GROUP of each in a row, and their token ids; every prompt has args.prompt words."""
    texts = []
    for n in range(-(-count // GROUP)):
        words = list(itertools.islice(itertools.cycle(WORDS[n % len(WORDS) :] + WORDS[: n % len(WORDS)]), args.prompt))
        texts += [" ".join(words)] * GROUP
    texts = texts[:count]
    return texts, tokenizer(texts, add_special_tokens=False).input_ids


def open_model(args):
    """(folder of the model, its tokenizer). Without a tokenizer in the folder: one of words, beside links to the weights."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(args.model).resolve()
    if (folder / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers

        whole, folder = folder, Path(tempfile.mkdtemp(prefix="grpo_speed_"))
        for file in whole.iterdir():
            (folder / file.name).symlink_to(file)
        vocabulary = {"<pad>": 1, "<eos>": 2, "<unk>": 3} | {word: n for n, word in enumerate(WORDS, 10)}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        special = dict(eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
        tokenizer.save_pretrained(folder)
    return folder, tokenizer


def timed(args, what, sample, count, **facts):
    """Run sample() -> list of rows of tokens, and write down how long it took."""
    start = now()
    rows = sample()
    seconds, tokens = now() - start, sum(len(row) for row in rows)
    emit(args, what=what, rows=count, tokens=tokens, seconds=seconds, tokens_per_s=tokens / seconds, **facts, **gpu())


# -- sampling alone


def part_vllm(args):
    from vllm import LLM, SamplingParams

    folder, tokenizer = open_model(args)
    counts = args.rows, 4 * args.rows
    begin = time.perf_counter()
    engine = LLM(
        model=str(folder), max_model_len=args.prompt + args.new + 8, max_num_seqs=counts[1], seed=0,
        gpu_memory_utilization=0.6, enforce_eager=args.eager, logprobs_mode="processed_logprobs",
    )  # fmt: skip
    emit(args, what="start", seconds=time.perf_counter() - begin, eager=args.eager)

    def ask(count, **more):
        ids = prompts_of(tokenizer, args, count)[1]
        how = SamplingParams(temperature=1.0, max_tokens=args.new, ignore_eos=True, **more)
        made = engine.generate([{"prompt_token_ids": each} for each in ids], how, use_tqdm=False)
        return [row.token_ids for each in made for row in each.outputs]

    ask(counts[0], detokenize=False)  # warms up
    for count in (counts[0], *counts):
        timed(args, "sampling", lambda count=count: ask(count, detokenize=False), count)
    timed(
        args, "sampling, with log-probabilities and texts, as TRL asks", lambda: ask(counts[0], logprobs=0), counts[0]
    )


def load_plain(args):
    """(model in 16 bits without LoRA, tokenizer, prompts' ids)."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, tokenizer = open_model(args)
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.bfloat16 if cuda else torch.float32, device_map={"": 0} if cuda else None
    )
    return model.eval(), tokenizer, prompts_of(tokenizer, args, args.rows)[1]


def part_decoder(args):
    import torch

    sys.path.insert(0, str(HERE.parent))
    from common.speed import graph

    torch.backends.cuda.enable_cudnn_sdp(False)
    model, _, ids = load_plain(args)
    cuda = torch.cuda.is_available()
    for what in ("first call", "sampling", "sampling"):  # an end token of -1: none ends early
        timed(args, what, lambda: graph.decode(model, ids, args.new, 1.0, [-1], 0, graph=cuda), len(ids))


def part_batch(args):
    import torch
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, _, ids = load_plain(args)
    blocks = (
        dict(continuous_batching_config=ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64))
        if not torch.cuda.is_available()
        else {}
    )
    how = GenerationConfig(
        max_new_tokens=args.new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        eos_token_id=model.config.vocab_size - 1,
    )  # fmt: skip

    def ask(**more):
        made = model.generate_batch(ids, generation_config=how, progress_bar=False, **blocks, **more)
        return [each.generated_tokens for each in made.values()]

    for what in ("first call", "sampling"):
        timed(args, what, ask, len(ids))
    for what in ("first call, manager kept", "sampling, manager kept"):
        timed(args, what, lambda: ask(persistent_manager=True), len(ids))
    emit(args, what="attention", implementation=model.config._attn_implementation)


def part_static(args):
    import torch

    model, _, ids = load_plain(args)
    inputs = torch.tensor(ids, device=model.device)  # all prompts have the same length
    how = dict(
        max_new_tokens=args.new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        eos_token_id=model.config.vocab_size - 1, cache_implementation="static",
    )  # fmt: skip

    def ask(**more):
        made = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **how | more)
        return made[:, inputs.shape[1] :].tolist()

    with torch.no_grad():
        for what in ("first call", "sampling", "sampling"):
            timed(args, what, ask, len(ids))


# -- updates


class Watch:
    """Cuts each update into sampling, weights to vLLM, and the rest. trainer: wrapped in place."""

    def __init__(self, args, trainer, note=None):
        from transformers import TrainerCallback

        self.args, self.spent, self.last, self.facts, self.tokens = args, {}, now(), {}, 0
        if hasattr(trainer, "vllm_generation"):
            trainer.vllm_generation.generate = self.wrap("sampling", trainer.vllm_generation.generate, vllm=True)
            trainer.vllm_generation.sync_weights = self.wrap("weights", trainer.vllm_generation.sync_weights)
        elif getattr(trainer, "rollout_func", None):
            trainer.rollout_func = self.wrap("sampling", trainer.rollout_func)
        watch = self

        class Updates(TrainerCallback):
            def on_step_end(self, _, state, control, **kwargs):
                watch.update(trainer, state.global_step)
                if note:
                    note(trainer, state.global_step)

        trainer.add_callback(Updates())

    def wrap(self, name, function, vllm=False):
        def called(*positional, **named):
            start, inner = now(), self.spent.get("weights", 0.0)
            made = function(*positional, **named)
            # vLLM that slept asks for its weights inside of generate
            self.spent[name] = self.spent.get(name, 0.0) + now() - start
            if name == "sampling":
                self.spent[name] -= self.spent.get("weights", 0.0) - inner
                self.tokens = sum(map(len, made[1] if vllm else made["completion_ids"]))
            return made

        return called

    def update(self, trainer, step):
        seconds = now() - self.last
        training = seconds - sum(self.spent.values())
        emit(self.args, what="update", update=step, seconds=seconds, **self.spent, training=training, tokens=self.tokens,
             **self.facts, **gpu(reset=True))  # fmt: skip
        self.spent, self.last = {}, now()


def reward(completions, **_):
    """Differs from completion to completion, so that every group has a gradient."""
    return [hash(str(text)) % 1000 / 1000 for text in completions]


def settings(args, updates):
    """TRL's flags, the same for stock TRL and for ours."""
    return dict(
        max_steps=updates, num_generations=GROUP, per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=args.rows // MICRO, max_completion_length=args.new, beta=0.04, learning_rate=5e-6,
        gradient_checkpointing=True, use_bias_correction_kl=False, loss_type="dapo", max_grad_norm=0.2,
        logging_steps=1, optim="adamw_torch_fused",
    )  # fmt: skip


def rows_of(args, tokenizer):
    from datasets import Dataset

    texts = prompts_of(tokenizer, args, 64 * GROUP)[0][::GROUP]
    return Dataset.from_list([{"prompt": text} for text in texts])


def stock(args, updates, **engine):
    """(folder to delete when done, TRL's trainer as it is), and a line of how long it took to make it. engine: flags of its vLLM."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    folder, tokenizer = open_model(args)
    cuda, begin = torch.cuda.is_available(), time.perf_counter()
    card, cards = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.bfloat16 if cuda else torch.float32, device_map={"": card} if cuda else None
    )
    scratch = tempfile.TemporaryDirectory()
    how = settings(args, updates) | dict(gradient_accumulation_steps=args.rows // MICRO // cards)
    config = GRPOConfig(
        output_dir=scratch.name, **how, use_vllm=True, **engine, bf16=cuda, use_cpu=not cuda, report_to=[],
        save_strategy="no", disable_tqdm=True, generation_kwargs={"ignore_eos": True},
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=args.r, lora_alpha=args.r, target_modules=TRAINED)
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=rows_of(args, tokenizer), processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip
    emit(args, what="start", seconds=time.perf_counter() - begin, **gpu())
    return scratch, trainer


def beside(args):
    """Flags of TRL's vLLM in the trainer's own process."""
    share, length = args.share, args.prompt + args.new + 8
    return dict(vllm_mode="colocate", vllm_gpu_memory_utilization=share, vllm_max_model_length=length)


def part_trl(args):
    scratch, trainer = stock(args, args.updates, **beside(args))
    with scratch:
        Watch(args, trainer)
        trainer.train()


def part_both(args):
    if int(os.environ["RANK"]):
        args.out = os.devnull
    part_trl(args)


def part_unsloth(args):
    import unsloth  # before TRL, which it patches
    from trl import GRPOConfig, GRPOTrainer

    folder, _ = open_model(args)
    begin = time.perf_counter()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=args.prompt + args.new + 8, load_in_4bit=False, fast_inference=True, max_lora_rank=args.r,
        gpu_memory_utilization=0.6,
    )  # fmt: skip
    emit(args, what="model and engine", seconds=time.perf_counter() - begin, **gpu())
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=args.r, lora_alpha=args.r, target_modules=TRAINED, use_gradient_checkpointing="unsloth"
    )
    with tempfile.TemporaryDirectory() as scratch:
        how = settings(args, args.updates) | dict(use_vllm=True, bf16=True, report_to=[], save_strategy="no")
        config = GRPOConfig(output_dir=scratch, disable_tqdm=True, **how)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=rows_of(args, tokenizer),
            processing_class=tokenizer,
        )
        Watch(args, trainer)
        trainer.train()


class Ahead:
    """TRL's generate of a vLLM server, wrapped in place. Once `on`, each call returns what was begun by the call before, with
    that call's prompts, gives the server the weights of now and begins the next."""

    def __init__(self, generation):
        from concurrent.futures import ThreadPoolExecutor

        self.on, self.begun, self.pool = False, None, ThreadPoolExecutor(1)
        self.generate, self.sync = generation.generate, generation.sync_weights
        generation.generate, generation.sync_weights = self.called, lambda: None

    def called(self, *positional, **named):
        made = self.begun.result() if self.begun else None
        self.sync()
        if not made:
            made = self.generate(*positional, **named)
        self.begun = self.pool.submit(self.generate, *positional, **named) if self.on else None
        return made


def part_server(args):
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ScriptArguments(
        model=str(open_model(args)[0]), host="127.0.0.1", port=port, gpu_memory_utilization=0.6,
        max_model_len=args.prompt + args.new + 8,
    )  # fmt: skip
    dev = dict(VLLM_SERVER_DEV_MODE="1", VLLM_WORKER_MULTIPROC_METHOD="spawn", CUDA_VISIBLE_DEVICES=cards[1])
    with open(f"{args.out}.engine.log", "w") as log:
        subprocess.Popen(build_command(asked), env=os.environ | dev, stdout=log, stderr=log)  # run() ends the group
    os.environ["CUDA_VISIBLE_DEVICES"] = cards[0]
    server = dict(vllm_mode="server", vllm_server_base_url=f"http://127.0.0.1:{port}", vllm_server_timeout=args.timeout)
    scratch, trainer = stock(args, 2 * args.updates, **server)
    ahead = Ahead(trainer.vllm_generation)

    def note(trainer, step):
        if step == args.updates:
            ahead.on = watch.facts["overlap"] = True

    with scratch:
        watch = Watch(args, trainer, note)
        watch.facts["overlap"] = False
        trainer.train()


def recipe(args, updates, *flags):
    """A trainer as r1_grpo/train.py makes it: (train's namespace of flags, trainer, rollout)."""
    sys.path.insert(0, str(TASK))
    import engine
    import train
    from common.cli import parse, trainer_config

    folder, tokenizer = open_model(args)
    scratch = tempfile.mkdtemp(prefix="grpo_speed_run_")
    same = settings(args, updates) | dict(output_dir=scratch, save_strategy="no", disable_tqdm="true", lora_r=args.r)
    same |= dict(model=folder, max_prompt_tokens=args.prompt + 8)
    argv = [str(each) for name, value in same.items() for each in (f"--{name}", value)]
    asked = parse(str(TASK / "train.py"), train.DEFAULTS, train.DEMO, train.Args, "trl:GRPOConfig", [*argv, *flags])
    engine.choose(asked, folder, train.work(asked, args.new, MICRO))
    if asked.use_vllm:
        asked.generation_kwargs = {"ignore_eos": True}
    config = trainer_config(asked)
    from trl import GRPOTrainer

    from common.models import widen_adapters
    from rollout import Rollout

    model = train.load_model(asked, config, folder)
    begin, rollout = time.perf_counter(), Rollout()
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=rows_of(args, tokenizer), processing_class=tokenizer,
        rollout_func=rollout,
    )  # fmt: skip
    if asked.use_vllm:
        engine.start(trainer, rollout)
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    widen_adapters(model)
    chosen = (
        "rollouts",
        "quantization",
        "fused_lora",
        "use_liger_kernel",
        "vllm_gpu_memory_utilization",
        "vllm_enable_sleep_mode",
    )
    emit(
        args,
        what="start",
        seconds=time.perf_counter() - begin,
        **{name: getattr(asked, name) for name in chosen},
        **gpu(),
    )
    return engine, trainer, rollout


FAST = ("--fused_lora", "true", "--use_liger_kernel", "true")


def part_ours(args):
    import torch

    half = args.updates
    flags = FAST if torch.cuda.is_available() else ()
    engine, trainer, rollout = recipe(args, 2 * half - 1, "--rollouts", "vllm", *flags, *args.flags)

    def note(trainer, step):
        if step == half:
            trainer.model.gradient_checkpointing_disable()
            watch.facts["checkpointing"] = False

    watch = Watch(args, trainer, note)
    watch.facts["checkpointing"] = True
    trainer.train()
    slopes(args, engine, trainer)


def slopes(args, engine, trainer):
    """engine_slope for adapters whose B is drawn at random in some sizes, by TRL's merge and by ours; and whether the
    frozen weights are what they were."""
    import torch

    vllm, model = trainer.vllm_generation, trainer.model
    ids = prompts_of(trainer.processing_class, args, args.rows)[1]
    vllm.max_completion_length = args.new // 4
    frozen = [p for name, p in model.named_parameters() if name.endswith("base_layer.weight")][:: 7 * 4 + 1]
    stock = type(vllm).sync_weights
    for size in args.sizes:
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(0, size)
        trainer.state.global_step = 0  # a multiple of beside.CHECK
        for merge in ("random", "nearest"):
            before, start = [each.detach().clone() for each in frozen], now()
            engine.sync(trainer) if merge == "random" else stock(vllm)
            seconds = now() - start
            _, made, logprobs, _ = vllm.generate(ids, None, GROUP)
            sampled = [[each[0] for each in row] for row in logprobs]
            found = engine.look(trainer, ids, [list(row) for row in made], sampled)
            moved = sum((old != new).sum().item() for old, new in zip(before, frozen, strict=True))
            total = sum(each.numel() for each in frozen)
            emit(
                args, what="slope", b=size, merge=merge, sync_seconds=seconds, frozen_moved=moved, frozen=total, **found
            )


def part_hf(args):
    import torch

    flags = FAST if torch.cuda.is_available() else ()
    _, trainer, _ = recipe(args, args.updates, "--rollouts", "hf", *flags, *args.flags)
    Watch(args, trainer)
    trainer.train()


def part_cap24(args):
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(24e9 / torch.cuda.mem_get_info()[1])
        flags = [*FAST, "--quantization", "4bit"]
    else:
        flags = []
    _, trainer, _ = recipe(args, max(2, args.updates - 1), "--rollouts", "hf", *flags, *args.flags)
    Watch(args, trainer)
    trainer.train()


# -- all parts


def run(args, part, script, seconds, *flags):
    """One part in a process of its own, `script --part part`, ended after so many seconds."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if part == "both" else []
    command = [sys.executable, *torchrun, str(Path(script).resolve()), "--part", part, *flags, *args.passed]
    log, begin, environment = Path(f"{args.out}.{part}.log"), time.time(), dict(os.environ)
    if part not in TWO_CARDS:  # a trainer that sees a second card takes it, and twice the rows
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with open(log, "w") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"ended after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its engine, too
            child.wait()
    print(f"## {part}: {code if code else 'done'}, {time.time() - begin:.0f} s", flush=True)
    if code:
        args.part = part
        emit(args, what="failed", code=code, seconds=time.time() - begin)
        print(log.read_text(errors="replace")[-1500:], flush=True)


def show(file):
    """The last word on each thing that was measured."""
    lines, last = [json.loads(line) for line in Path(file).read_text().splitlines()], {}
    for line in lines:
        key = (
            line["part"],
            line["what"],
            line.get("rows"),
            line.get("checkpointing"),
            line.get("overlap"),
            line.get("b"),
            line.get("merge"),
        )
        last[key] = line
    hidden = {"part", "at", "gpu", "what"}
    for line in last.values():
        facts = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in line.items() if name not in hidden)  # fmt: skip
        print(f"{line['part']:8} {line['what']}: {facts}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder with config.json and weights")
    parser.add_argument("--only", nargs="+", choices=PARTS + TWO_CARDS, default=PARTS, metavar="PART")
    parser.add_argument("--out", default=str(HERE / "results" / "grpo_speed.jsonl"))
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a part")
    parser.add_argument("--rows", type=int, default=24, help="completions of an update")
    parser.add_argument("--prompt", type=int, default=88, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--r", type=int, default=32, help="LoRA's rank")
    parser.add_argument("--updates", type=int, default=4, help="updates of a trainer; the first one warms up")
    parser.add_argument("--share", type=float, default=0.35, help="stock TRL's vllm_gpu_memory_utilization")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], help="standard deviations of B")
    parser.add_argument("--eager", action="store_true", help="vLLM alone without CUDA graphs")
    parser.add_argument("--flags", default="", help="more flags of r1_grpo/train.py, as one text")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--part", choices=PARTS + TWO_CARDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.passed = [each for each in sys.argv[1:] if each != "--show"]
    args.flags = args.flags.split()
    if args.show:
        return show(args.out)
    if not args.model:
        parser.error("--model is missing")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    args.out = str(Path(args.out).resolve())
    if args.part:
        for name in ("PYTHONHASHSEED", "TOKENIZERS_PARALLELISM"):
            os.environ.setdefault(name, "0" if "SEED" in name else "false")
        return globals()[f"part_{args.part}"](args)
    for part in args.only:
        run(args, part, __file__, args.timeout)
    show(args.out)


if __name__ == "__main__":
    main()
