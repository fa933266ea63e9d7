"""Kills every trainer at every write, and holds what comes out against a run that was left alone:  make faults

Each trainer runs on a tiny random model in a process forked from one that has loaded the libraries. An audit hook lists
what it opens for writing, makes, renames and removes below its output folder. Then it is killed (SIGKILL) just before the
first of these, before the second, and so on, and started again with the same command. That run has to end with the same
adapter, byte for byte, and the same metrics, and leave a user's files in the folder as they were.

What C writes in one go (safetensors, torch's archives) raises no events. So of the kills that leave an unfinished checkpoint
or adapter, every second one has its newest file cut in half, as a kill in the middle of that write would leave it.
"""

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLOCK = re.compile("time|seconds|per_s|^s_|peak_gb")  # metrics that no two runs have in common
TEXT = (
    "--lora_r 2 --learning_rate 1e-2 --show_answers 1 --max_new_tokens 2 --per_device_train_batch_size 2 --eval_rows 3 "
)
STEPS = "--max_steps 5 --save_steps 2 --logging_steps 2 --save_total_limit 1 "
RLHF = "--bf16 false --quantization none --max_pairs 12 --eval_ratio 0.2 "
# Name -> folder, script, flags. MODEL, EYES, PHOTOS, REWARD: what is made first.
TRAINERS = {
    "alpaca": ("alpaca", "train", f"--demo --model MODEL --eval_steps 2 {TEXT}{STEPS}"),
    "domain_mix": ("domain_mix", "train", f"--demo --model MODEL --eval_steps 2 {TEXT}{STEPS}"),
    "s1": ("s1_scaling", "train", "--demo --model MODEL --lora_r 2 --learning_rate 1e-2 --per_device_train_batch_size 2 "
           f"--eval_rows 2 --eval_steps 3 --max_length 4000 --max_think 3 --cap 2 --max_answer 2 {STEPS}"),
    "r1": ("r1_grpo", "train", "--demo --model MODEL --lora_r 2 --num_generations 2 --per_device_train_batch_size 2 "
           "--max_completion_length 3 --warmup_sft 1 --warmup_sft_rows 2 --probe_prompts 1 --eval_prompts 1 --follow 2 "
           f"--follow_steps 3 --max_prompt_tokens 4000 --dead_steps 0 --bf16 false {STEPS}"),
    "vl": ("vl_insurance", "train", "--demo --model EYES --data PHOTOS --overfit 4 --lora_r 2 --max_new_tokens 2 --show_answers 1 "
           f"--per_device_train_batch_size 2 --eval_steps 2 {STEPS}"),
    "reward": ("rlhf_ppo", "train_reward", f"--demo --model MODEL {RLHF}--lora_r 2 --batch_size 2 --save_every 2 "
               "--eval_every 2 --sft_samples 2 --max_new_tokens 2 --max_length 4000 --max_prompt_length 4000"),
    "ppo": ("rlhf_ppo", "train_ppo", f"--demo --model MODEL --reward REWARD {RLHF}--lora_r 2 --updates 5 --save_every 2 "
            "--rollout_size 2 --minibatches 1 --micro_batch_size 2 --max_new_tokens 2 --show_answers 1 --snapshot_every 3 "
            "--max_prompt_length 4000"),
    "grpo": ("rlhf_ppo", "train_grpo", f"--demo --model MODEL --reward REWARD {RLHF}--lora_r 2 --num_generations 2 "
             "--per_device_train_batch_size 2 --max_completion_length 2 --show_answers 1 --max_prompt_length 4000 "
             f"{STEPS}--logging_steps 1"),
    "dpo": ("preference", "dpo", f"--demo --model MODEL --eval_steps 2 --max_length 4000 {TEXT}{STEPS}"),
    "kto": ("preference", "kto", f"--demo --model MODEL --eval_steps 2 --max_length 4000 {TEXT}{STEPS}"),
    **{each: ("lora_variants", "train",
       f"--demo --model MODEL --variant {each} --eval_steps 2 --max_length 4000 {TEXT}{STEPS}")
       for each in ("rslora", "dora", "pissa", "olora", "eva", "loraplus", "lorafa", "muon")},
    "cpt": ("continual", "train", "--demo --model MODEL --embeddings --ask 1 --eval_steps 2 --lora_alpha 2 --max_length 400 "
            f"{TEXT}{STEPS}"),
    "sft": ("continual", "sft", f"--demo --model MODEL --ask 1 --eval_steps 2 --lora_alpha 2 --max_length 400 {TEXT}{STEPS}"),
}  # fmt: skip
USERS = ("checkpoint-3-mine/keep", "checkpoint-best/keep", "notes.txt")


def tiny_model(folder: Path):
    """A random Llama of 2 layers, width 16, that reads bytes and ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: n for n, each in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2], additional_special_tokens=special[1:2]
    )
    tokenizer.chat_template = (
        "{% for each in messages %}<|im_start|>{{ each['role'] }}\n{{ each['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_eyes(folder: Path):
    """The miniature of vl_insurance with random weights, 2 layers and width 32."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    miniature = ROOT / "vl_insurance" / "miniature"
    folder.mkdir()
    for file in miniature.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((miniature / "config.json").read_text())
    config["text_config"] |= dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1)
    config["text_config"] |= dict(num_hidden_layers=2, layer_types=["full_attention"] * 2, max_window_layers=2)
    rope = config["text_config"].get("rope_parameters") or config["text_config"].get("rope_scaling") or {}
    if "mrope_section" in rope:
        rope["mrope_section"] = [2, 3, 3]
    config["vision_config"] |= dict(hidden_size=32, intermediate_size=32, depth=2, num_heads=2, out_hidden_size=32)
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).save_pretrained(folder)
    return folder


def photos(folder: Path):
    """Four rows of vl_insurance with their pictures: reading all of its sample would take as long as the training."""
    folder.mkdir()
    pictures = sorted((ROOT / "vl_insurance" / "sample" / "images").iterdir())[:4]
    rows = [dict(id=each.stem, prompt="What is it?", image=each.name, response=each.stem) for each in pictures]
    for each in pictures:
        shutil.copy(each, folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def warm():
    """Load what every trainer loads, once."""
    import matplotlib

    matplotlib.use("Agg")
    import datasets
    import torch
    from matplotlib import pyplot  # noqa: F401
    from matplotlib.figure import Figure

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    for name in ("trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "peft", "pandas", "openpyxl", "accelerate.utils",
                 "transformers.models.llama.modeling_llama", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
                 "transformers.models.qwen2_5_vl.processing_qwen2_5_vl", "filelock", "scipy", "PIL.Image", "yaml"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    Figure.savefig = lambda self, file, **_: Path(file).write_bytes(b"a plot")
    os.fsync = lambda _: None  # what a killed process wrote, the system has
    gc.collect()
    gc.freeze()  # or each process looks through all that was loaded, and copies it by doing so


def forked(work, log: Path):
    """Do work in a forked process, its output in log. Returns the exit status, -9 where it was killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not (child := os.fork()):
        code = 1
        try:
            with open(log, "w", buffering=1) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            import torch

            # Threads that read weights would set torch's pool up all at once, which a fork has left behind.
            torch.set_num_threads(1)
            work()
            code = 0
        except SystemExit as end:
            print(end.code)
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def prepare(name):
    """Import a trainer's modules, as the script's own start would."""
    from matplotlib import figure

    folder, script, _ = TRAINERS[name]
    sys.path[0] = str(ROOT / folder)
    if name == "r1":  # a random model earns nothing, and then nothing is learned that could differ

        def letters_reward_func(text, gold):
            return sum(map(ord, text)) % 7 / 7

        rewards = importlib.import_module("rewards")
        rewards.REWARDS = [*rewards.REWARDS, letters_reward_func]
    module, runs = importlib.import_module(script), importlib.import_module("common.runs")
    # Plots take half of a tiny run's time, and what is looked at here is when they are written, not what.
    runs.Run.plot = lambda run, file, *_, **__: runs.files.save_figure(figure.Figure(), run.folder / file)
    return module


def trainer(module, flags, home: Path, watch=None):
    """What a process does: the script's main, below `home`, with an audit hook if there is one."""

    def work():
        os.chdir(home)
        os.environ["OUTPUT_DIR"] = str(home)
        sys.argv = [module.__name__ + ".py", *flags, "--output_dir", str(home / "run")]
        if watch:
            sys.addaudithook(watch)
        module.main()

    return work


def hook(home: Path, kill_at: int, events: Path):
    """An audit hook that writes each event below home to `events`, and kills the process before event `kill_at`.

    It puts a user's files into the run's folder as soon as that has a record.
    """
    names = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
    seen, busy = 0, False

    def path_of(path, folder):
        path = os.fsdecode(path)
        if os.path.isabs(path):
            return path
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder not in (-1, None) else os.getcwd(), path)

    def audit(event, given):
        nonlocal seen, busy
        if event not in names or busy or not isinstance(given[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
            return
        last = given[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        target = given[1] if event == "os.rename" else given[0]
        full = path_of(target, last)
        if not full.startswith(f"{home}/") or full.endswith("/.lock") or (event == "os.mkdir" and os.path.isdir(full)):
            return
        busy, seen = True, seen + 1
        with open(events, "a") as file:
            file.write(f"{event} {os.path.relpath(full, home)}\n")
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full.endswith("/metrics.jsonl") and not os.path.exists(f"{os.path.dirname(full)}/notes.txt"):
            for name in USERS:
                os.makedirs(os.path.dirname(f"{os.path.dirname(full)}/{name}"), exist_ok=True)
                with open(f"{os.path.dirname(full)}/{name}", "w") as file:
                    file.write("mine")
        busy = False

    return audit


def tearable(home: Path):
    """The newest file of an unfinished checkpoint or adapter, or None."""
    torn = [each for each in home.glob("run*/*") if each.is_dir() and not (each / "manifest.json").is_file()
            and re.fullmatch(r"checkpoint-\d+|\.checkpoint-\d+\.new|\.saving", each.name)]  # fmt: skip
    files = [file for each in torn for file in each.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=None)


def result(home: Path):
    """(folder, its adapter's bytes, its metrics without clocks) of the newest finished run."""
    records = [(json.loads(file.read_text()), file.parent) for file in home.glob("run*/run.json")]
    finished = [(record["finished"], folder) for record, folder in records if record["status"] == "finished"]
    folder = max(finished)[1]
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logs = [{name: log[name] for name in sorted(log) if not CLOCK.search(name)} for log in logs]
    return folder, (folder / "adapter_model.safetensors").read_bytes(), logs


def faults(name, flags, home: Path, points: int):
    """All kill points of a trainer, or `points` of them. Returns (a row of figures, what went wrong)."""
    module, began, wrong = prepare(name), time.time(), []
    whole = home / "whole"
    whole.mkdir(parents=True)
    code = forked(trainer(module, flags, whole, hook(whole, 0, home / "events")), home / "whole.log")
    if code:
        return None, [f"{name}: exit {code}\n{(home / 'whole.log').read_text()}"]
    folder, adapter, logs = result(whole)
    events = (home / "events").read_text().splitlines()
    total = len(events)
    chosen = sorted({int((n + 0.5) * total / points) + 1 for n in range(points)}) if points else range(1, total + 1)
    resumed, chances, torn, most_lost = 0, 0, 0, 0
    for point in chosen:
        place, log = home / f"{point}", home / f"{point}.log"
        place.mkdir()
        code = forked(trainer(module, flags, place, hook(place, point, home / "killed")), log)
        what = f"{name}, killed before {events[point - 1]} ({point} of {total})"
        if code != -signal.SIGKILL:
            wrong.append(f"{what}: it was not killed, exit {code}\n{log.read_text()[-2000:]}")
            continue
        chances += (half := tearable(place)) is not None
        if half and chances % 2:
            os.truncate(half, half.stat().st_size // 2)
            torn += 1
        users = [file for each in USERS for file in place.glob(f"run*/{each}")]
        complete = [each.parent for each in place.glob("run*/checkpoint-*/manifest.json")]
        done = [steps["step"] for file in place.glob("run/metrics.jsonl") for steps in map(read, file.open()) if steps]
        status = [json.loads(file.read_text())["status"] for file in place.glob("run*/run.json")]
        code = forked(trainer(module, flags, place), log)
        said = log.read_text()
        if code:
            wrong.append(f"{what}: started again, exit {code}\n{said[-3000:]}")
            continue
        again, same, numbers = result(place)
        goes_on = re.search(r"goes on from checkpoint-(\d+)", said)
        resumed += bool(goes_on)
        most_lost = max(most_lost, max(done, default=0) - int(goes_on[1])) if goes_on else most_lost
        if same != adapter:
            wrong.append(f"{what}: another adapter; {goes_on and goes_on[0]}")
        if numbers != logs:
            lines = [f"{one}\n{other}" for one, other in itertools.zip_longest(logs, numbers) if one != other]
            wrong.append(f"{what}: other metrics; {goes_on and goes_on[0]}\n{lines[0]}")
        if [file for file in users if not file.is_file() or file.read_text() != "mine"]:
            wrong.append(f"{what}: a user's file is gone")
        if complete and status == ["unfinished"] and (not goes_on or again.name != "run"):
            wrong.append(f"{what}: it began anew beside {complete[-1].name}\n{said[-2000:]}")
        shutil.rmtree(place)
    row = dict(trainer=name, events=total, kills=len(chosen), cut_files=torn, went_on=resumed, most_steps_again=most_lost,
               seconds=round(time.time() - began))  # fmt: skip
    return row, wrong


def read(line):
    """A metrics line, or None where it was cut off."""
    with contextlib.suppress(ValueError):
        return json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=0, help="kills per trainer, spread evenly (default: all)")
    parser.add_argument("--only", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--keep", help="work in this folder and leave it there")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = (
        "1"  # its threads are the first in a fork to ask torch's pool: at times it breaks
    )
    sys.path.insert(0, "")  # each trainer's folder takes this place
    work, began = Path(args.keep or tempfile.mkdtemp(prefix="faults-")), time.time()
    (work / "models").mkdir(parents=True)
    warm()
    models = {"MODEL": tiny_model(work / "models" / "text"), "EYES": tiny_eyes(work / "models" / "eyes")}
    models["PHOTOS"] = photos(work / "photos")

    def flags_of(name):
        return [str(models.get(word, word)) for word in TRAINERS[name][2].split()]

    rows, wrong = [], []
    if {"ppo", "grpo"} & set(args.only):
        (home := work / "judge").mkdir()
        code = forked(lambda: trainer(prepare("reward"), flags_of("reward"), home)(), work / "judge.log")
        if code:
            raise SystemExit((work / "judge.log").read_text())
        models["REWARD"] = home / "run"
    for name in args.only:

        def one(name=name):
            row, bad = faults(name, flags_of(name), work / name, args.points)
            (work / f"{name}.json").write_text(json.dumps([row, bad]))

        code = forked(one, work / f"{name}.log")  # in a process of its own: folders have modules of the same names
        row, bad = (
            json.loads((work / f"{name}.json").read_text())
            if not code
            else (None, [(work / f"{name}.log").read_text()])
        )
        rows, wrong = rows + [row] * bool(row), wrong + bad
        if row:
            print(json.dumps(row), flush=True)
    print(f"{sum(row['kills'] for row in rows)} kills in {time.time() - began:.0f} s, {len(wrong)} faults")
    if not args.keep:
        shutil.rmtree(work)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
