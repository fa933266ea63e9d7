# Generated from common/runs.py: edit that file, then run `make sync`.
"""One folder a run: what was asked, what happened, what came out. Resumes what was cut off, never deletes results.

OUTPUT_DIR/<task>/<time>/run.json       arguments, versions, GPU, git revision, data digest, seconds, tokens, peak GB
                         metrics.jsonl  every logged number, a line a log
                         loss.png       training and held-out loss
                         checkpoint-N/  the newest three and the best
                         the adapter and its tokenizer
"""

import fcntl
import gc
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from common.masks import trained_share
from common.models import sharded, widen_adapters
from common.paths import TASK_DIR, check_disk, output_dir

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth")
# Where a run is written and what it is said to cost do not change what it computes.
NOT_IN_IDENTITY = (
    "output_dir",
    "logging_dir",
    "run_name",
    "price_per_hour",
    "show_mask",
    "auto",
    "estimate",
    "given",
    "local_rank",
)


class Run:
    """The plan, the folder and the record of one training run.

    config: the trainer's config; its output_dir becomes the run's folder. args, model_args: the script's own flags.
    dataset: the tokenized training set, a `datasets.Dataset` with a column input_ids; for GRPO that of the prompts.
    draw: called with the run's folder instead of drawing loss.png.
    """

    def __init__(self, config, args, model_args, dataset, draw=None):
        self.draw, self.group = draw, getattr(config, "num_generations", None) or 1  # GRPO: completions a prompt
        self.model, self.price = model_args.model, args.price_per_hour
        self.rows, self.tokens, self.share = len(dataset), count_tokens(dataset), trained_share(dataset)
        self.rows_a_step = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
        steps_an_epoch = math.ceil(self.rows * self.group / self.rows_a_step)
        self.steps = config.max_steps if config.max_steps > 0 else math.ceil(steps_an_epoch * config.num_train_epochs)

        arguments = json.loads(json.dumps(config.to_dict() | vars(args) | vars(model_args), default=str))
        asked = {name: value for name, value in arguments.items() if name not in NOT_IN_IDENTITY}
        data = digest(dataset)
        self.record = {
            "identity": hashlib.sha256(json.dumps([asked, data], sort_keys=True).encode()).hexdigest(),
            "status": "unfinished",
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "data_sha256": data,
            "device": device_name(),
            "versions": {name: version(name) for name in LIBRARIES if importlib.util.find_spec(name)},
            "git": git_revision(),
            "arguments": arguments,
        }
        self.signal, self.training, self.lock = None, False, None
        explicit = config.output_dir not in (None, "trainer_output")
        wanted = Path(config.output_dir).expanduser() if explicit else output_dir() / time.strftime("%Y%m%d-%H%M%S")
        check_disk(wanted.parent, 500_000_000 if config.use_cpu else 3_000_000_000, "checkpoints and the adapter")
        self.main, self.world = config.process_index == 0, config.world_size
        found = [None, None]
        if self.main:
            found = self._resumable(wanted, explicit) or (free_name(wanted), None)
        if self.world > 1:  # several processes, one a GPU, share the folder that the first one found
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(list(found))
        self.folder, self.checkpoint = found
        config.output_dir = str(self.folder)
        self._print_plan()

    def _resumable(self, wanted, explicit):
        """An unfinished run with the same arguments and data that has a complete checkpoint and no live process."""
        folders = wanted.parent.glob(f"{wanted.name}*" if explicit else "*")
        for folder in sorted(folders, reverse=True):
            old = read_record(folder)
            if old.get("identity") != self.record["identity"] or old.get("status") == "finished":
                continue
            # The trainer writes this file last: where it can be read, the checkpoint was not cut off.
            complete = [each for each in checkpoints(folder) if read_record(each, "trainer_state.json")]
            if complete and (lock := take_lock(folder)):
                self.lock = lock
                return folder, complete[-1]
        return None

    def _print_plan(self):
        epochs = self.steps * self.rows_a_step / (self.rows * self.group)
        plan = (
            f"plan: {self.rows:,} rows, {self.tokens:,} tokens ({self.tokens / self.rows:.0f} a row, {self.share:.0%} "
            f"trained on); {self.steps:,} optimizer "
            f"steps of {self.rows_a_step} rows = {epochs:.2g} epochs, about {self.tokens * epochs:,.0f} tokens"
        )
        if self.group > 1:
            plan = (
                f"plan: {self.rows:,} prompts of {self.tokens / self.rows:.0f} tokens; {self.steps:,} optimizer steps of "
                f"{self.rows_a_step} completions, {self.group} a prompt = {epochs:.2g} epochs"
            )
        print(f"{plan}\nrun:  {self.folder}")
        if self.steps > 10_000:
            print(
                f"      {self.steps:,} steps are days on any card. --max_steps 2000: {2000 * self.rows_a_step:,} rows"
            )
        if self.checkpoint:
            print(f"      an unfinished run with these arguments and this data goes on from {self.checkpoint.name}")

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.main and not self.checkpoint:
            self.lock = take_lock(self.folder)
        self.handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        self.note(status="unfinished")
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is not None:
            self.note(stopped_by=f"{kind.__name__}: {error}"[:500])
            self.plot()
        if self.lock:
            self.lock.close()

    def _on_signal(self, number, frame):
        if not self.training or self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        os.write(2, b"\nstopping: a checkpoint is saved after this step; the same command goes on from it\n")

    def note(self, **facts):
        """Add facts to run.json."""
        self.record |= facts
        if self.main:
            write_json(self.folder / "run.json", self.record)

    def train(self, trainer):
        """Train, from the checkpoint if there is one. Ends the process with 128 + N when signal N asked it to stop."""
        import torch

        seen = count_tokens(trainer.train_dataset)
        if seen != self.tokens:
            raise SystemExit(
                f"the trainer sees {seen:,} tokens instead of {self.tokens:,}: it cuts rows at another length."
            )
        widen_adapters(trainer.model)
        start = int(self.checkpoint.name.split("-")[1]) if self.checkpoint else 0
        if self.main:
            self._cut_metrics(start)
        trainer.add_callback(self._recorder())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        gc.collect()
        gc.freeze()  # what was loaded stays: looking through it for garbage again and again makes steps late
        began, self.training = time.time(), True
        try:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        except torch.cuda.OutOfMemoryError as error:
            raise SystemExit(
                f"{str(error).splitlines()[0]}\nTry, in this order: --per_device_train_batch_size 1 with "
                f"--gradient_accumulation_steps {self.rows_a_step // self.world} (the same updates); --quantization 4bit; "
                "--gradient_checkpointing true; a smaller --max_length; a smaller --model."
            ) from None
        except Exception as error:
            if "No space left" not in str(error):
                raise
            raise SystemExit(
                f"{self.folder}: the disk is full. Free some space; the same command goes on from the last checkpoint."
            ) from None
        finally:
            self.training = False
        seconds, steps = time.time() - began, trainer.state.global_step - start
        tokens = round(self.tokens / self.rows * self.rows_a_step * steps)  # padding is not counted
        self.note(steps=trainer.state.global_step, seconds=round(seconds, 1), tokens=tokens, **peak_memory())
        self.plot()
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _cut_metrics(self, step):
        """Forget what was logged after the checkpoint: those steps are done again."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        keep = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        replace_text(file, "".join(keep))

    def _recorder(self):
        import torch
        from tqdm import tqdm
        from transformers import TrainerCallback

        run, times = self, []

        class Recorder(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                if not run.main:
                    return
                with open(run.folder / "metrics.jsonl", "a") as file:
                    file.write(json.dumps({"step": state.global_step, "time": round(time.time(), 2)} | logs) + "\n")

            def on_step_end(self, args, state, control, **kwargs):
                times.append(time.time())
                if len(times) == 20:
                    step = (times[-1] - times[0]) / 19  # the first step compiles and warms up
                    left = step * (run.steps - state.global_step)
                    price = f", {left / 3600 * run.price:.2f} at {run.price} an hour" if run.price else ""
                    hours = f"{left / 3600:.1f} hours" if left > 5400 else f"{left / 60:.1f} minutes"
                    tqdm.write(f"{step:.2f} s a step: the rest takes about {hours}{price}")
                stop = bool(run.signal)
                if run.world > 1:  # all processes stop after the same step, or the others wait for ever
                    flag = torch.tensor(int(stop), device=args.device)
                    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
                    stop = bool(flag)
                if stop:
                    control.should_save = control.should_training_stop = True

            def on_save(self, args, state, control, **kwargs):
                if not run.main:
                    return
                best = Path(state.best_model_checkpoint or "").name
                for old in checkpoints(run.folder)[:-3]:
                    if old.name != best:
                        shutil.rmtree(old)
                run.plot()

        return Recorder()

    def plot(self):
        """Draw loss.png, or what `draw` draws, from metrics.jsonl, if anything was logged."""
        file = self.folder / "metrics.jsonl"
        if not self.main or not file.exists():
            return
        if self.draw:
            return self.draw(self.folder)
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        logs = [json.loads(line) for line in file.read_text().splitlines()]
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for key, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
            points = [(log["step"], log[key]) for log in logs if key in log]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label)
        axes.set(xlabel="optimizer step", ylabel="cross-entropy a token", title=f"{TASK_DIR.name}: {self.folder.name}")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        figure.savefig(self.folder / ".loss.png", format="png", dpi=120)
        pyplot.close(figure)
        os.replace(self.folder / ".loss.png", self.folder / "loss.png")

    def save(self, trainer, tokenizer, **texts):
        """Write the adapter, its tokenizer and `texts` (name=content, as name.txt) to the run's folder."""
        made = self.folder / ".saving"
        # Where FSDP has the model in pieces, every process takes part in putting it together.
        whole = trainer.accelerator.get_state_dict(trainer.model) if sharded() else None
        if not self.main:
            return
        trainer.model.save_pretrained(made, state_dict=whole)
        tokenizer.save_pretrained(made)
        (made / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        settings = json.loads((made / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = self.model  # as asked for: a path here means nothing elsewhere
        write_json(made / "adapter_config.json", settings)
        for name, text in texts.items():
            (made / f"{name}.txt").write_text(text, encoding="utf-8")
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
            os.replace(file, self.folder / file.name)
        made.rmdir()
        self.note(status="finished")
        print(f"saved: {self.folder}")


def gradient_guard():
    """A trainer's callback: an update whose gradient is not finite is left out, five in a row end the run.

    One gradient that is not a number, and every weight is none. The logs count such updates as skipped_updates.
    """
    import torch
    from transformers import TrainerCallback

    class Guard(TrainerCallback):
        skipped, in_a_row = 0, 0

        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            gradients = [each.grad for each in model.parameters() if each.grad is not None]
            if torch.nn.utils.get_total_norm(gradients).isfinite():
                self.in_a_row = 0
                return
            optimizer.zero_grad()
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            print(f"step {state.global_step + 1}: the gradient is not finite, this update is left out", flush=True)
            if self.in_a_row == 5:
                raise SystemExit("stopped: five gradients in a row were not finite. Try a lower --learning_rate.")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "reward" in logs:
                logs["skipped_updates"] = self.skipped

    return Guard()


def latest_adapter(task: str = TASK_DIR.name) -> Path:
    """The newest run of this task that was finished."""
    finished = [run for run in sorted(output_dir(task).glob("*")) if read_record(run).get("status") == "finished"]
    if not finished:
        raise SystemExit(f"no finished run in {output_dir(task)}: run train.py first, or name a folder with --adapter.")
    return finished[-1]


def count_tokens(dataset) -> int:
    """Tokens in a tokenized dataset."""
    return sum(
        len(table["input_ids"].combine_chunks().flatten()) for table in dataset.with_format("arrow").iter(50_000)
    )


def digest(dataset) -> str:
    """sha256 over a tokenized dataset's values: data, template and tokenizer in one number."""
    import pyarrow

    state = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(10_000):
        for name in sorted(table.column_names):
            lists = table[name].combine_chunks()
            if not hasattr(lists, "flatten") or not pyarrow.types.is_integer(lists.flatten().type):
                continue  # TRL may keep the text beside its tokens
            state.update(name.encode())
            state.update(lists.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            state.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
    return state.hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def read_record(folder: Path, name: str = "run.json") -> dict:
    """run.json of a folder; empty if it has none that can be read."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(file: Path, content):
    """Write JSON so that the file is either the old or the new one."""
    replace_text(file, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def replace_text(file: Path, text: str):
    """Write text so that the file is either the old or the new one."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)


def take_lock(folder: Path):
    """The open file that holds a run's folder for this process; None while another one holds it."""
    file = open(folder / ".lock", "w")  # noqa: SIM115 (held for the whole run)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it however the process ends
    except OSError:
        file.close()
        return None
    return file


def free_name(folder) -> Path:
    """folder, or folder-2, folder-3, ...: the first one that is not there or empty."""
    taken = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))]
    return next(name for name in taken if not name.exists() or not any(name.iterdir()))


def device_name() -> str:
    """The GPU, or the CPU and how many threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    features = " ".join(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if cpu.get(name))
    return f"{cpu.get('cpu_name', 'CPU')} ({features}), {torch.get_num_threads()} threads"


def peak_memory() -> dict:
    """Peak memory in GB: what torch's tensors took on the GPU and what it reserved, or this process's memory."""
    import resource

    import torch

    if torch.cuda.is_available():
        taken, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_gb": round(taken / 1e9, 2), "peak_gb_reserved": round(reserved / 1e9, 2)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_gb_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)}


def git_revision() -> str | None:
    """The commit that this folder is at; None without git or a repository."""
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(TASK_DIR), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
