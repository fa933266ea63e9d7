# Generated from common/runs.py: edit that file, then run `make sync`.
"""One folder per run: what was asked, what happened, what came out. Resumes what was cut off, never deletes results.

OUTPUT_DIR/<task>/<time>/run.json       arguments, versions, GPU, git revision, data digest, seconds, tokens, peak GB
                         metrics.jsonl  every logged number, one line per log
                         loss.png       training and held-out loss
                         checkpoint-N/  the newest three and the best; complete when its manifest.json says so
                         README.md      the run's card: base, data, before and after, how to use it
                         the adapter, its tokenizer, and how it wants to be asked (serving.json, contract.py)

A recipe of several stages keeps each in OUTPUT_DIR/<task>/<stage>/<time>. Imports torch: for after the parsing.
"""

import contextlib
import gc
import hashlib
import importlib.util
import itertools
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
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy
import torch
from torch.utils._pytree import tree_leaves
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from common import contract, device, files, screen, tokens, trackers
from common.finite import GradientGuard, check_weights
from common.hub import resolve_model
from common.models import widen_adapters
from common.paths import TASK_DIR, check_disk, command, output_dir

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth")
# Where a run is written and what it is said to cost do not change what it computes.
NOT_IN_IDENTITY = (
    "output_dir", "logging_dir", "run_name", "price_per_hour", "show_mask", "auto", "estimate", "given", "local_rank",
    "reuse", "stop_after", "rehearse", "report_to",
)  # fmt: skip


class Run:
    """The folder and the record of one run: of a trainer, or of a loop that a script writes itself.

    args: the script's flags. config, dataset: of a trainer its config, whose output_dir becomes the run's folder, and the
    tokenized training set, for GRPO that of the prompts. draw: called with the folder instead of drawing loss.png.
    stage, inputs: of an own loop its name and the digests of what it reads. marker: the file that save_state writes; None:
    the stage has no checkpoints and finds its way through its own folder.

    A run with the same arguments, inputs and base weights that was cut off is gone on with, from its newest checkpoint
    that is as it was written. Afterwards: folder; checkpoint (a folder to go on from, or None); finished (with --reuse:
    it was made before); stop (the signal that asked to save and end).
    """

    def __init__(self, args, config=None, dataset=None, draw=None, stage="", inputs=None, marker="trainer_state.json"):
        self.config, self.stage, self.marker, self.draw, self.price = config, stage, marker, draw, None
        arguments, asked = vars(args), args.output_dir
        self.main, self.world = True, 1
        made_of = {"inputs": inputs}
        if config:
            self._plan(args, config, dataset)
            made_of = {"data_sha256": dataset_digest(dataset), "weights": files.fingerprint(resolve_model(args.model))}
            arguments = arguments | config.to_dict() | {name: arguments[name] for name in args.own_flags}
            asked = None if config.output_dir in (None, "trainer_output") else config.output_dir
            self.main, self.world = config.process_index == 0, config.world_size
            made_of["processes"] = self.world  # on fewer GPUs a step has fewer rows
            if self.world > 1 and config.use_cpu:  # accelerate says cpu:0 and cpu:1, to which torch.load reads nothing
                vars(config)["_setup_devices"] = torch.device("cpu")
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SystemExit(f"{Path(sys.argv[0]).name} trains on one GPU: start it with python, without a launcher.")
        told = {name: value for name, value in arguments.items() if name not in ("own_flags", "trainer")}
        self.secrets = secrets(told | vars(args), sys.argv)
        told = {name: None if is_secret(name) else value for name, value in told.items()}
        arguments = json.loads(json.dumps(told, default=str))
        same = {name: value for name, value in arguments.items() if name not in NOT_IN_IDENTITY}
        self.record = {
            "identity": digest([stage, same, *made_of.values()]),
            "task": TASK_DIR.name,
            "stage": stage,
            "status": "unfinished",
            "started": time.time(),
            "command": self.hide(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            **made_of,
            "device": device.name(),
            "versions": {name: version(name) for name in LIBRARIES if importlib.util.find_spec(name)},
            "git": git_revision(),
            "arguments": arguments,
        }
        self.stop, self.training, self.lock, self.finished = None, False, None, False
        self.stop_after = vars(args).get("stop_after")
        self.report_to, self.trackers = [each for each in vars(args).get("report_to", ()) if each != "none"], None
        self.saved, self.needed = False, 0
        wanted = Path(asked).expanduser() if asked else output_dir() / stage / time.strftime("%Y%m%d-%H%M%S")
        on_gpu = config and not config.use_cpu
        check_disk(wanted.parent, 3_000_000_000 if on_gpu else 500_000_000, "checkpoints and the adapter")
        found = [None, None]
        if self.main and not (found := self._earlier(wanted, bool(asked), getattr(args, "reuse", False))):
            folder, self.lock = files.claim(wanted)
            found = folder, None
        if self.world > 1:  # several processes, one per GPU, share the folder that the first one found
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(list(found))
        self.folder, self.checkpoint = found
        # What the processes before this one did: seconds, and what the trainer counts without keeping it in its state.
        self.progress = files.read_json(self.checkpoint / files.MANIFEST).get("progress", {}) if self.checkpoint else {}
        if config:
            config.output_dir = str(self.folder)
        self._say()

    def _earlier(self, wanted, explicit, reuse):
        """(folder, checkpoint) of a run with the same arguments and inputs: finished, with --reuse; or unfinished, with a
        complete checkpoint and no live process."""
        found = [(each, files.read_json(each / "run.json")) for each in wanted.parent.glob("*")]
        for folder, old in sorted(found, key=lambda each: str(each[1].get("started", "")), reverse=True):
            if explicit and not re.fullmatch(rf"{re.escape(wanted.name)}(-\d+)?", folder.name):
                continue
            if old.get("identity") != self.record["identity"]:
                begun = old and old.get("status") != "finished" and checkpoints(folder)
                if begun and self.record.keys() - old.keys():  # what was not recorded then cannot be compared
                    print(
                        f"      {folder.name} was begun by an older version of this recipe: it is kept, and not gone on with"
                    )
                continue
            # run-2 may be what was made where run was taken, or another run that somebody gave this name.
            if explicit and wanted.name not in (folder.name, Path(old["arguments"]["output_dir"] or "").name):
                continue
            if old.get("status") == "finished":
                if reuse:
                    self.finished, self.record = True, old
                    return folder, None
                continue
            if not (lock := files.take_lock(folder)):
                continue
            old = files.read_json(folder / "run.json")  # again: another process may have finished it just now
            checkpoint = self._newest(folder) if old.get("status") == "unfinished" else None
            if checkpoint:
                self.lock, since = lock, old.get("started", self.record["started"])
                self.record = old | self.record | {"started": since}
                return folder, checkpoint
            lock.release()
        return None

    def _newest(self, folder):
        """The newest checkpoint that is as it was written, or None. Says what is wrong with the others."""
        if not self.marker:
            return folder
        for checkpoint in reversed(checkpoints(folder)):
            needed = [checkpoint]
            if self.config and self.config.load_best_model_at_end:
                needed.append(best_of(folder, files.read_json(checkpoint / "trainer_state.json")) or checkpoint)
            wrong = [f"{each.name}: {fault}" for each in dict.fromkeys(needed) if (fault := files.damage(each))]
            if not wrong:
                return checkpoint
            print(f"      {folder.name}/{checkpoint.name} is left out, {wrong[0]}")
        return None

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
            plan = "plan: {rows:,} rows, {tokens:,} tokens ({mean:.0f} per row, {share:.0%} trained on); {steps:,} optimizer steps of {batch} rows = {epochs:.2g} epochs, about {seen:,.0f} tokens"
            if self.group > 1:
                plan = "plan: {rows:,} prompts of {mean:.0f} tokens; {steps:,} optimizer steps of {batch} completions, {group} per prompt = {epochs:.2g} epochs"
            facts = {name: vars(self)[name] for name in ("rows", "tokens", "share", "steps", "group")}
            facts |= dict(
                mean=self.tokens / self.rows, batch=self.rows_per_step, epochs=epochs, seen=self.tokens * epochs
            )
            print(screen.text(plan, **facts))
            if self.steps > 10_000:
                many = "      {steps:,} steps are days on any card. --max_steps 2000: {rows:,} rows"
                print(screen.text(many, steps=self.steps, rows=2000 * self.rows_per_step))
        print(f"{self.stage}: {self.folder}" if self.stage else screen.text("run: {folder}", folder=self.folder))
        if self.finished:
            print("      finished before with these arguments and inputs")
        if self.checkpoint:
            more = "      an unfinished run with these arguments and this data goes on from {checkpoint}"
            print(screen.text(more, checkpoint=self.checkpoint.name))

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        self.training, self.began = not self.config, time.time()
        try:
            if self.report_to:
                self.record.setdefault("tracking_id", os.urandom(8).hex())  # a resumed run goes on in the same curve
                trackers.announce(self.report_to, self.folder)
            self.note(status="unfinished")
        except OSError as error:
            self.__exit__(OSError, error, None)
            raise
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        try:
            if kind is not None:
                self._broken(f"{kind.__name__}: {error}", error)
            elif not self.config:
                self.finish(seconds=self.seconds(), **device.peak_memory())
                print(screen.text("saved: {folder}", folder=self.folder))
            elif self.saved:
                if self.main:
                    self.card()
                self.finish()
        finally:
            trackers.close(self.trackers or [])
            if self.lock:
                self.lock.release()

    def _broken(self, told, error):
        """Record what ended the run; one line where the disk is full, or where the error would print a secret."""
        if full := files.is_full(error):
            torn = [each for each in checkpoints(self.folder) if not (each / files.MANIFEST).is_file()]
            for each in [*torn, *self.folder.glob(".checkpoint-*.new"), self.folder / ".saving"] if self.main else ():
                shutil.rmtree(each, ignore_errors=True)  # cut off here, and in the way of the record
            kept, free = [each.name for each in checkpoints(self.folder)], shutil.disk_usage(self.folder).free
            sizes = [sum(file.stat().st_size for file in (self.folder / each).rglob("*")) for each in kept[-1:]]
            told = (
                f"{self.folder}: the disk is full, or a quota or file-size limit (ulimit -f) is reached: {free / 1e9:.2f} GB "
                f"are free, a checkpoint takes about {max([self.needed, *sizes]) / 1e9:.2f} GB. Kept: "
                f"{', '.join(kept) or 'no checkpoint'}. Make room; the same command "
                f"{f'goes on from {kept[-1]}' if kept else 'begins anew'}."
            )
        with contextlib.suppress(Exception):  # whatever fails here, the error that ended the run is what is to be read
            self.note(stopped_by=self.hide(told)[:500])
            if self.config and not full:
                self.draw_loss()
        if full or self.hide(told) != told:
            raise SystemExit(self.hide(told)) from None

    def hide(self, text):
        """Text without the tokens that were given as flags."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def seconds(self):
        """What the run has taken, in the processes before this one, too."""
        return round(self.progress.get("seconds", 0) + time.time() - self.began, 1)

    def _on_signal(self, number, frame):
        if self.stop and self.world > 1:  # a launcher passes on what its processes have had from Slurm or the terminal
            return
        if not self.training or self.stop:
            raise SystemExit(128 + number)
        self.stop = number
        said = screen.text("stopping: a checkpoint is saved after this step; the same command goes on from it")
        os.write(2, f"\n{said}\n".encode())

    def end_if_stopped(self):
        """After a checkpoint: leave with 128 + N if signal N asked for it."""
        if self.stop:
            raise SystemExit(128 + self.stop)

    def note(self, **facts):
        """Add facts to run.json."""
        self.record |= facts
        if self.main:
            files.write_json(self.folder / "run.json", self.record)

    def finish(self, **facts):
        """The last word of a run: what it made is on the disk before it says so."""
        for each in self.folder.iterdir() if self.main else ():
            files.sync(each)
        self.note(status="finished", finished=time.time(), **facts)

    # metrics.jsonl

    def log(self, step, metrics):
        """Append one line to metrics.jsonl, which trackers read."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 2)} | metrics) + "\n")
        if self.trackers is None:  # not before cut_metrics
            self.trackers = trackers.start(self.report_to, self.folder)

    def metrics(self) -> list[dict]:
        file, logs = self.folder / "metrics.jsonl", []
        for line in file.read_text(errors="replace").splitlines(keepends=True) if file.exists() else ():
            with contextlib.suppress(ValueError):  # what a power failure leaves of a line
                logs += [json.loads(line)] if line.endswith("\n") else []
        return logs

    def cut_metrics(self, step):
        """Forget what was logged after `step`, and the summary of the end and what follows it: they are done again."""
        logs = itertools.takewhile(lambda log: "train_runtime" not in log, self.metrics())
        kept = [log for log in logs if log["step"] <= step]
        files.replace_text(self.folder / "metrics.jsonl", "".join(json.dumps(log) + "\n" for log in kept))

    def plot(self, file, panels, x="update", more=()):
        """Draw metrics.jsonl as rows of three small plots. panels: title -> {name of a metric: its label}. more: lines that
        are not in the file, as what was measured before training, at step 0."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        logs, columns = [*more, *self.metrics()], min(3, len(panels))
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
        files.save_figure(figure, self.folder / file)

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
        screen.heading("training")
        self.go_on(trainer)
        steps = trainer.state.global_step
        seen = round(self.tokens / self.rows * self.rows_per_step * steps)  # padding is not counted
        self.note_weights(trainer.model)
        self.note(steps=steps, seconds=self.seconds(), tokens=seen, **device.peak_memory())
        self.draw_loss()
        self.end_if_stopped()

    def go_on(self, trainer):
        """trainer.train(), from the checkpoint if there is one. The trainer's own deletion of old checkpoints is off: it
        takes a user's checkpoint-3-mine for its own."""
        if self.main:
            self.cut_metrics(number_of(self.checkpoint) if self.checkpoint else 0)
        config, self.trainer = trainer.args, trainer
        self.keep, config.save_total_limit = config.save_total_limit or 3, None
        if config.hub_token:  # the libraries look there, too, and training_args.bin does not
            os.environ["HF_TOKEN"], config.hub_token = config.hub_token, None
        self.needed = 3 * sum(each.nbytes for each in trainer.model.parameters() if each.requires_grad)
        quiet(trainer)
        if not any(isinstance(each, GradientGuard) for each in trainer.callback_handler.callbacks):
            trainer.add_callback(GradientGuard())
        trainer.add_callback(Recorder(self))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        gc.collect()
        gc.freeze()  # what was loaded stays: looking through it for garbage again and again makes steps late
        self.training, self.began = True, time.time() if self.config else self.began
        try:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        except torch.cuda.OutOfMemoryError as error:
            batch = config.gradient_accumulation_steps * config.per_device_train_batch_size
            advice = "{error}\nTry, in this order: --per_device_train_batch_size 1 with --gradient_accumulation_steps {batch} (the same updates); --quantization 4bit; --gradient_checkpointing true; a smaller --max_length; a smaller --model."
            raise SystemExit(screen.text(advice, error=str(error).splitlines()[0], batch=batch)) from None
        finally:
            self.training = False

    def note_weights(self, model):
        """Record what the frozen weights were in while training; --quantization auto does not say it."""
        counts = Counter()
        for name, each in model.named_parameters():
            counts[each.dtype] += each.numel() if "lora_" not in name else 0
        kind = torch.uint8 if torch.uint8 in counts else counts.most_common(1)[0][0]
        self.note(trained_in="nf4" if kind == torch.uint8 else str(kind).removeprefix("torch."))

    def save(self, trainer, tokenizer, **texts):
        """Write the adapter, its tokenizer and `texts` (name=content, as name.txt) to the run's folder."""
        made = self.folder / ".saving"
        # Where FSDP has the model in pieces, every process takes part in putting it together.
        whole = trainer.accelerator.get_state_dict(trainer.model) if device.sharded() else None
        self.saved = True  # and finished when what comes after it has been measured and noted
        if not self.main:
            return
        save_adapter(trainer.model, tokenizer, made, self.model, whole)
        for name, text in texts.items():
            (made / f"{name}.txt").write_text(text, encoding="utf-8")
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
            os.replace(file, self.folder / file.name)
        made.rmdir()
        contract.write(self.folder, TASK_DIR.name, tokenizer, self.record, self.record["weights"])
        contract.keep_rows(self.folder, trainer.eval_dataset, trainer.train_dataset)
        self.card()
        print(screen.text("saved: {folder}", folder=self.folder))

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
        files.replace_text(self.folder / "README.md", "\n".join(lines))

    # checkpoints of a loop that a script writes itself

    def save_state(self, step, state, keep=2):
        """Write state (torch.save) and the state of all random generators as checkpoint-<step>.

        Under a temporary name first, so that a checkpoint is complete or not there; the oldest ones make room.
        """
        new, folder = self.folder / f".checkpoint-{step}.new", self.folder / f"checkpoint-{step}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        self.needed = sum(each.nbytes for each in tree_leaves(state) if isinstance(each, torch.Tensor))
        torch.save({"step": step, "random": random_state(), **state}, new / self.marker)
        self._seal(new)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of before
        os.replace(new, folder)
        files.sync(self.folder)
        prune(self.folder, step, keep)

    def _seal(self, checkpoint, **progress):
        """A checkpoint counts from here on, and so does each metric up to it."""
        if (file := self.folder / "metrics.jsonl").is_file():
            files.sync(file)
        files.seal(checkpoint, progress={"seconds": self.seconds(), **progress})

    def load_state(self):
        """The state of the checkpoint to go on from, or None; random generators and metrics are set back to it."""
        if not self.checkpoint:
            return None
        state = torch.load(self.checkpoint / self.marker, map_location="cpu", weights_only=True)
        set_random_state(state["random"])
        self.cut_metrics(state["step"])
        return state


def quiet(trainer):
    """Take from a trainer what prints each log whole: forty numbers per step, which are in metrics.jsonl."""
    for each in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(each)


class Recorder(TrainerCallback):
    """Writes metrics.jsonl (but not for an own loop), prints a line for each log, stops after a signal, completes
    checkpoints, keeps the newest and the best; after a resume, goes on counting where the trainer begins anew."""

    def __init__(self, run):
        self.run, self.spent, self.seen, self.steps = run, 0.0, 0, None

    def on_train_begin(self, args, state, control, **kwargs):
        run, trainer = self.run, self.run.trainer
        self.steps = screen.Steps(run.stage or "training", state.max_steps, state.global_step, run.price)
        if not run.checkpoint:
            if trainer.eval_dataset is not None and args.eval_strategy != "no" and not args.eval_on_start:
                random = random_state()  # training must not notice that it is watched
                trainer.evaluate()
                set_random_state(random)
            return
        args.eval_on_start = False  # that was measured before
        best = best_of(run.folder, files.read_json(run.checkpoint / "trainer_state.json"))
        state.best_model_checkpoint = best and str(best)  # transformers forgets one that was moved with its run
        counted = run.progress.get("counted", {})
        trainer._total_loss_scalar, losses, trainer._globalstep_last_logged = counted.get(
            "loss", [0.0, [0.0], state.global_step]
        )
        trainer._tr_loss = torch.tensor(losses[args.process_index % len(losses)], device=args.device)
        if "tokens" in counted:
            self.seen = trainer._total_train_tokens = counted["tokens"]
        for name, values in counted.get("metrics", {}).items():
            trainer._metrics["train"][name] = values
        trainer.model.train(counted.get("training", True))  # TRL's last log tells of what was done last
        if state.global_step >= state.max_steps:  # the trainer would do one more step before it looks
            trainer._run_epoch = lambda **_: None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" in logs and (before := self.run.progress.get("seconds", 0)):
            here = logs["train_runtime"]
            logs["train_runtime"] = round(before + here, 4)
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * here / (before + here), 3)
        if self.run.main and self.run.config:
            self.run.log(state.global_step, logs)
        if self.run.main and self.steps:
            self.steps.log(state.global_step, logs, logs.get("tokens_per_second") or self.speed(logs))

    def speed(self, logs):
        """Tokens per second of the steps since the last log, by TRL's count, without what evaluation took."""
        if "num_tokens" not in logs or not self.spent:
            return None
        new, spent = logs["num_tokens"] - self.seen, self.spent
        self.seen, self.spent = logs["num_tokens"], 0.0
        return new / spent

    def on_train_end(self, *_, **kwargs):
        self.steps.close()

    def on_prediction_step(self, *_, eval_dataloader=None, **kwargs):
        self.steps.measure(len(eval_dataloader))

    def on_step_begin(self, *_, **kwargs):
        self.begun = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        run = self.run
        self.spent += time.time() - self.begun
        self.steps.bar.update(state.global_step - self.steps.bar.n)
        if state.global_step == run.stop_after:
            run.stop = run.stop or signal.SIGTERM
        stop = bool(run.stop)
        if run.world > 1:  # all processes stop after the same step, or the others wait for ever
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            stop = bool(flag)
        if stop:
            run.stop = run.stop or signal.SIGTERM  # or a process that had no signal would go on as if it had finished
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        run, losses = self.run, [float(self.run.trainer._tr_loss)]  # since the last log, of this process's rows
        if run.world > 1:
            from accelerate.utils import gather_object

            losses = gather_object(losses)  # waits, too, until each process has written its random state
        if run.main:
            self.complete(state, losses)
        if run.world > 1:  # the first process that leaves after a stop makes launchers end the others
            torch.distributed.barrier()

    def complete(self, state, losses):
        """Seal the checkpoint that was just written, and take the old ones away. losses: of each process."""
        run, trainer = self.run, self.run.trainer
        checkpoint = run.folder / f"checkpoint-{state.global_step}"
        for other in checkpoint.glob("*/adapter_config.json"):  # the reward model, GRPO's reference: where transformers
            shutil.rmtree(other.parent)  # finds them, it loads these alone and leaves the policy as it is
        counted = {"loss": [trainer._total_loss_scalar, losses, trainer._globalstep_last_logged]}
        counted |= {"tokens": vars(trainer).get("_total_train_tokens", 0), "training": trainer.model.training}
        counted |= {"metrics": vars(trainer).get("_metrics", {}).get("train", {})}
        run._seal(checkpoint, counted=counted)
        best = best_of(run.folder, vars(state))
        prune(run.folder, state.global_step, run.keep, best and best.name)
        if run.config:
            run.draw_loss()


def save_adapter(model, tokenizer, folder: Path, base: str, state_dict=None):
    """An adapter and its tokenizer, with the base named as it was asked for: a path here means nothing elsewhere."""
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    check_weights(state_dict.items() if state_dict else trained, folder.parent)
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    files.write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": base})


def number_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, oldest first. A user's checkpoint-3-mine is none."""
    found = [each for each in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", each.name)]
    return sorted((each for each in found if each.is_dir() and not each.is_symlink()), key=number_of)


def best_of(folder: Path, state: dict):
    """The checkpoint that a trainer's state calls the best, where the run's folder is now; None without one."""
    return (folder / Path(state["best_model_checkpoint"]).name) if state.get("best_model_checkpoint") else None


def prune(folder: Path, step: int, keep: int, best=None):
    """Delete checkpoints but the newest and the best; one of a later step than this was damaged and not gone on from."""
    newest = [each for each in checkpoints(folder) if number_of(each) <= step][-keep:]
    for old in checkpoints(folder):
        if old not in newest and old.name != best:
            shutil.rmtree(old, ignore_errors=True)


def is_secret(name: str) -> bool:
    """Whether a flag's value must not be written: tokens and keys, but not a tokenizer's tokens."""
    return bool(re.search("(token|key|secret|password)$", name)) and name not in ("eos_token", "pad_token")


def secrets(arguments: dict, argv: list) -> set:
    """Values of such flags, from the flags that a script knows and from the command line."""
    found = {value for name, value in arguments.items() if is_secret(name)}
    for one, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = one.partition("=")
        if name.startswith("--") and is_secret(name[2:].replace("-", "_")):
            found.add(value or following)
    return {each for each in found if each and isinstance(each, str)}


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
