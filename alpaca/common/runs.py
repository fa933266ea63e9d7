# Generated from common/runs.py: edit that file, then run `make sync`.
"""One folder per run: what was asked, what happened, what came out. Resumes what was cut off, never deletes results.

OUTPUT_DIR/<task>/<time>/run.json       arguments, versions, GPU, git revision, data digest, seconds, tokens, peak GB
                         metrics.jsonl  every logged number, one line per log
                         loss.png       training and held-out loss
                         checkpoint-N/  the newest three and the best
                         README.md      the run's card: base, data, before and after, how to use it
                         the adapter and its tokenizer

A recipe of several stages keeps each in OUTPUT_DIR/<task>/<stage>/<time>. Imports torch: for after the parsing.
"""

import gc
import hashlib
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from common import device, tokens
from common.files import free_name, read_json, replace_text, save_figure, take_lock, write_json
from common.models import widen_adapters
from common.paths import TASK_DIR, check_disk, command, output_dir

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth")
# Where a run is written and what it is said to cost do not change what it computes.
NOT_IN_IDENTITY = (
    "output_dir", "logging_dir", "run_name", "price_per_hour", "show_mask", "auto", "estimate", "given", "local_rank",
    "reuse",
)  # fmt: skip


class Run:
    """The folder and the record of one run: of a trainer, or of a loop that a script writes itself.

    args: the script's flags. config, dataset: of a trainer its config, whose output_dir becomes the run's folder, and the
    tokenized training set, for GRPO that of the prompts. draw: called with the folder instead of drawing loss.png.
    stage, inputs: of an own loop its name and the digests of what it reads. marker: the file without which a checkpoint is
    not complete; None: the stage has no checkpoints and finds its way through its own folder.

    A run with the same arguments and inputs that was cut off is gone on with. Afterwards: folder; checkpoint (a folder to
    go on from, or None); finished (with --reuse: it was made before); stop (the signal that asked to save and end).
    """

    def __init__(self, args, config=None, dataset=None, draw=None, stage="", inputs=None, marker="trainer_state.json"):
        self.config, self.stage, self.marker, self.draw = config, stage, marker, draw
        arguments, asked = vars(args), args.output_dir
        self.main, self.world = True, 1
        if config:
            self._plan(args, config, dataset)
            inputs = dataset_digest(dataset)
            arguments = arguments | config.to_dict() | {name: arguments[name] for name in args.own_flags}
            asked = None if config.output_dir in (None, "trainer_output") else config.output_dir
            self.main, self.world = config.process_index == 0, config.world_size
        told = {name: value for name, value in arguments.items() if name not in ("own_flags", "trainer")}
        arguments = json.loads(json.dumps(told, default=str))
        same = {name: value for name, value in arguments.items() if name not in NOT_IN_IDENTITY}
        self.record = {
            "identity": digest([stage, same, inputs]),
            "task": TASK_DIR.name,
            "stage": stage,
            "status": "unfinished",
            "started": time.time(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "data_sha256" if config else "inputs": inputs,
            "device": device.name(),
            "versions": {name: version(name) for name in LIBRARIES if importlib.util.find_spec(name)},
            "git": git_revision(),
            "arguments": arguments,
        }
        self.stop, self.training, self.lock, self.finished = None, False, None, False
        wanted = Path(asked).expanduser() if asked else output_dir() / stage / time.strftime("%Y%m%d-%H%M%S")
        on_gpu = config and not config.use_cpu
        check_disk(wanted.parent, 3_000_000_000 if on_gpu else 500_000_000, "checkpoints and the adapter")
        found = [None, None]
        if self.main:
            found = self._earlier(wanted, bool(asked), getattr(args, "reuse", False)) or (free_name(wanted), None)
        if self.world > 1:  # several processes, one per GPU, share the folder that the first one found
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(list(found))
        self.folder, self.checkpoint = found
        if config:
            config.output_dir = str(self.folder)
        self._say()

    def _earlier(self, wanted, explicit, reuse):
        """(folder, checkpoint) of a run with the same arguments and inputs: finished, with --reuse; or unfinished, with a
        complete checkpoint and no live process."""
        name = rf"{re.escape(wanted.name)}(-\d+)?" if explicit else ".*"
        folders = [each for each in wanted.parent.glob("*") if re.fullmatch(name, each.name)]
        for folder in sorted(
            folders, key=lambda each: str(read_json(each / "run.json").get("started", "")), reverse=True
        ):
            old = read_json(folder / "run.json")
            complete = [each for each in checkpoints(folder) if self._complete(each)] if self.marker else [folder]
            if old.get("identity") != self.record["identity"]:
                if old.get("status") != "finished" and complete and old and "task" not in old:
                    print(
                        f"      {folder.name} was begun by an older version of this recipe: it is kept, and not gone on with"
                    )
                continue
            if old["status"] == "finished" and reuse:
                self.finished, self.record = True, old
                return folder, None
            if old["status"] != "finished" and complete and (lock := take_lock(folder)):
                self.lock, since = lock, old.get("started", self.record["started"])
                self.record = old | self.record | {"started": since}
                return folder, complete[-1]
        return None

    def _complete(self, checkpoint):
        """The marker is written last: where it can be read, the checkpoint was not cut off."""
        file = checkpoint / self.marker
        return bool(read_json(file)) if file.suffix == ".json" else file.is_file()

    def _plan(self, args, config, dataset):
        """How much the trainer will see."""
        self.model, self.price = args.model, args.price_per_hour
        self.group = getattr(config, "num_generations", None) or 1  # GRPO: completions per prompt
        self.rows, self.tokens, self.share = len(dataset), sum(tokens.lengths(dataset)), tokens.trained_share(dataset)
        self.rows_per_step = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
        steps_per_epoch = math.ceil(self.rows * self.group / self.rows_per_step)
        self.steps = config.max_steps if config.max_steps > 0 else math.ceil(steps_per_epoch * config.num_train_epochs)

    def _say(self):
        if self.config:
            epochs = self.steps * self.rows_per_step / (self.rows * self.group)
            plan = (
                f"plan: {self.rows:,} rows, {self.tokens:,} tokens ({self.tokens / self.rows:.0f} per row, {self.share:.0%} "
                f"trained on); {self.steps:,} optimizer "
                f"steps of {self.rows_per_step} rows = {epochs:.2g} epochs, about {self.tokens * epochs:,.0f} tokens"
            )
            if self.group > 1:
                plan = (
                    f"plan: {self.rows:,} prompts of {self.tokens / self.rows:.0f} tokens; {self.steps:,} optimizer steps of "
                    f"{self.rows_per_step} completions, {self.group} per prompt = {epochs:.2g} epochs"
                )
            print(plan)
            if self.steps > 10_000:
                rows = 2000 * self.rows_per_step
                print(f"      {self.steps:,} steps are days on any card. --max_steps 2000: {rows:,} rows")
        print(f"{self.stage or 'run'}: {self.folder}")
        if self.finished:
            print("      finished before with these arguments and inputs")
        if self.checkpoint:
            print(f"      an unfinished run with these arguments and this data goes on from {self.checkpoint.name}")

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.main and not self.checkpoint:
            self.lock = take_lock(self.folder)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        self.training, self.began = not self.config, time.time()
        self.note(status="unfinished")
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is not None:
            self.note(stopped_by=f"{kind.__name__}: {error}"[:500])
            if self.config:
                self.draw_loss()
        elif not self.config:
            self.finish(seconds=round(time.time() - self.began, 1), **device.peak_memory())
        elif self.main:
            self.card()
        if self.lock:
            self.lock.release()

    def _on_signal(self, number, frame):
        if not self.training or self.stop:
            raise SystemExit(128 + number)
        self.stop = number
        os.write(2, b"\nstopping: a checkpoint is saved after this step; the same command goes on from it\n")

    def end_if_stopped(self):
        """After a checkpoint: leave with 128 + N if signal N asked for it."""
        if self.stop:
            raise SystemExit(128 + self.stop)

    def note(self, **facts):
        """Add facts to run.json."""
        self.record |= facts
        if self.main:
            write_json(self.folder / "run.json", self.record)

    def finish(self, **facts):
        self.note(status="finished", finished=time.time(), **facts)
        print(f"saved: {self.folder}")

    # metrics.jsonl

    def log(self, step, metrics):
        """Append one line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 2)} | metrics) + "\n")

    def metrics(self) -> list[dict]:
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def cut_metrics(self, step):
        """Forget what was logged after `step`: those updates are done again."""
        kept = "".join(json.dumps(log) + "\n" for log in self.metrics() if log["step"] <= step)
        replace_text(self.folder / "metrics.jsonl", kept)

    def plot(self, file, panels, x="update"):
        """Draw metrics.jsonl as rows of three small plots. panels: title -> {name of a metric: its label}."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        logs, columns = self.metrics(), min(3, len(panels))
        rows, size = -(-len(panels) // 3), (8, 4.5) if len(panels) == 1 else (13, 3.2 * -(-len(panels) // 3))
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
            for name, label in names.items():
                points = [(log["step"], log[name]) for log in logs if log.get(name) is not None]
                if points:
                    marker = "o" if name.startswith("eval_") else None
                    axis.plot(*zip(*points, strict=True), label=label, linewidth=1.3, marker=marker, markersize=4)
            axis.set(title=title, xlabel=x)
            axis.grid(alpha=0.3)
            if len(names) > 1 and axis.lines:
                axis.legend()
        save_figure(figure, self.folder / file)

    def draw_loss(self):
        """Draw loss.png, or what `draw` draws, if anything was logged."""
        if not self.main or not self.metrics():
            return
        if self.draw:
            return self.draw(self.folder)
        title = f"{TASK_DIR.name}: {self.folder.name}; cross-entropy per token"
        self.plot("loss.png", {title: {"loss": "training", "eval_loss": "held out"}}, x="optimizer step")

    # a trainer's run

    def train(self, trainer):
        """Train, from the checkpoint if there is one. Ends the process with 128 + N when signal N asked it to stop."""
        seen = sum(tokens.lengths(trainer.train_dataset))
        if seen != self.tokens:
            raise SystemExit(
                f"the trainer sees {seen:,} tokens instead of {self.tokens:,}: it cuts rows at another length."
            )
        widen_adapters(trainer.model)
        start = number_of(self.checkpoint) if self.checkpoint else 0
        if self.main:
            self.cut_metrics(start)
        trainer.add_callback(Recorder(self))
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
                f"--gradient_accumulation_steps {self.rows_per_step // self.world} (the same updates); --quantization 4bit; "
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
        seen = round(self.tokens / self.rows * self.rows_per_step * steps)  # padding is not counted
        self.note(steps=trainer.state.global_step, seconds=round(seconds, 1), tokens=seen, **device.peak_memory())
        self.draw_loss()
        self.end_if_stopped()

    def save(self, trainer, tokenizer, **texts):
        """Write the adapter, its tokenizer and `texts` (name=content, as name.txt) to the run's folder."""
        made = self.folder / ".saving"
        # Where FSDP has the model in pieces, every process takes part in putting it together.
        whole = trainer.accelerator.get_state_dict(trainer.model) if device.sharded() else None
        if not self.main:
            return
        save_adapter(trainer.model, tokenizer, made, self.model, whole)
        for name, text in texts.items():
            (made / f"{name}.txt").write_text(text, encoding="utf-8")
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
            os.replace(file, self.folder / file.name)
        made.rmdir()
        self.card()
        self.finish()

    def card(self):
        """Write README.md: what this adapter is, in the form that a hub reads."""
        record, arguments = self.record, self.record["arguments"]
        lines = [
            f"---\nbase_model: {self.model}\nlibrary_name: peft\ntags: [lora, {TASK_DIR.name}]\n---",
            f"# {TASK_DIR.name}: {self.folder.name}\n",
            f"A LoRA adapter (r {arguments.get('lora_r')}) for {self.model}, trained by `{record['command']}`.\n",
            f"- data: {arguments.get('data') or 'the default data set'}; {self.rows:,} rows, {self.tokens:,} tokens "
            f"(sha256 {record['data_sha256'][:12]})",
            f"- training: {record.get('steps', 0):,} optimizer steps of {self.rows_per_step} rows, "
            f"{record.get('seconds', 0):,} s on {record['device']}",
        ]
        before, after = numbers(record.get("before", {})), numbers(record.get("after", {}))
        if after:
            lines += ["\n| measured on held-out rows | before | after |", "|---|---|---|"]
            lines += [f"| {name} | {before.get(name, '')} | {value} |" for name, value in after.items()]
        lines.append(
            f"\nTo use it (`--help` names the other flags):\n\n```sh\n{command('infer.py', '--adapter', self.folder)}\n```\n"
        )
        replace_text(self.folder / "README.md", "\n".join(lines))

    # checkpoints of a loop that a script writes itself

    def save_state(self, step, state, keep=2):
        """Write state (torch.save) and the state of all random generators as checkpoint-<step>.

        Under a temporary name first, so that a checkpoint is complete or not there; the oldest ones make room.
        """
        new = self.folder / f".checkpoint-{step}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        torch.save({"step": step, "random": random_state(), **state}, new / self.marker)
        shutil.rmtree(self.folder / f"checkpoint-{step}", ignore_errors=True)
        os.replace(new, self.folder / f"checkpoint-{step}")
        for old in checkpoints(self.folder)[:-keep]:
            shutil.rmtree(old)

    def load_state(self):
        """The state of the checkpoint to go on from, or None; random generators and metrics are set back to it."""
        if not self.checkpoint:
            return None
        state = torch.load(self.checkpoint / self.marker, map_location="cpu", weights_only=True)
        set_random_state(state["random"])
        self.cut_metrics(state["step"])
        return state


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, says how long it will take, stops after a signal, keeps three checkpoints and the best."""

    def __init__(self, run):
        self.run, self.times = run, []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.run.main:
            self.run.log(state.global_step, logs)

    def on_step_end(self, args, state, control, **kwargs):
        run, times = self.run, self.times
        times.append(time.time())
        if len(times) == 20:
            step = (times[-1] - times[0]) / 19  # the first step compiles and warms up
            left = step * (run.steps - state.global_step)
            price = f", {left / 3600 * run.price:.2f} at {run.price} per hour" if run.price else ""
            hours = f"{left / 3600:.1f} hours" if left > 5400 else f"{left / 60:.1f} minutes"
            tqdm.write(f"{step:.2f} s per step: the rest takes about {hours}{price}")
        stop = bool(run.stop)
        if run.world > 1:  # all processes stop after the same step, or the others wait for ever
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            stop = bool(flag)
        if stop:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if not self.run.main:
            return
        best = Path(state.best_model_checkpoint or "").name
        for old in checkpoints(self.run.folder)[:-3]:
            if old.name != best:
                shutil.rmtree(old)
        self.run.draw_loss()


class GradientGuard(TrainerCallback):
    """An update whose gradient is not finite is left out, five in a row end the run.

    One gradient that is not a number, and every weight is none. The logs count such updates as skipped_updates.
    """

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


def save_adapter(model, tokenizer, folder: Path, base: str, state_dict=None):
    """An adapter and its tokenizer, with the base named as it was asked for: a path here means nothing elsewhere."""
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": base})


def number_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, oldest first. A user's checkpoint-3-mine is none."""
    return sorted(
        (each for each in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", each.name)), key=number_of
    )


def dataset_digest(dataset) -> str:
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


def digest(content) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def numbers(found, name="") -> dict:
    """The numbers in nested dicts as "outer inner" -> text."""
    if isinstance(found, dict):
        return {
            key: value
            for inner, each in found.items()
            for key, value in numbers(each, f"{name} {inner}".strip()).items()
        }
    return (
        {name: f"{found:,.4g}" if isinstance(found, float) else str(found)} if isinstance(found, (int, float)) else {}
    )


def random_state():
    """The state of every generator that something here may draw from, in types that torch.load reads back safely."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state):
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype="uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def git_revision() -> str | None:
    """The commit that this folder is at; None without git or a repository."""
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(TASK_DIR), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
