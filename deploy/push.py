"""Put a run's adapter, or an exported folder, on a hub: Hugging Face or ModelScope. Private, unless told otherwise.

What goes up is a list of known files: weights, tokenizer, templates, the card. No data, no .env, no optimizer states. When
it is there, sizes and hashes are read back and compared: an upload that broke off is no model.

Look first:   python push.py --to ME/medical-qwen --dry_run
Upload:       python push.py --what merged --to ME/medical-qwen
ModelScope:   python push.py --hub modelscope --what gguf --to ME/medical-qwen
"""

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from common.files import read_json, text_table
from common.paths import command
from found import contract, name_of, open_run, sha256, with_run
from gate import newest_export

DEFAULTS = {}
# Everything else stays here: a run's folder has checkpoints, logs and held-out rows, a downloaded one may hold anything.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
                 "special_tokens_map.json", "chat_template.jinja", "processor_config.json", "preprocessor_config.json",
                 "serving.json", "serving_template.jinja", "prompt_template.txt", "prompt_template_short.txt",
                 "system_prompt.txt", "prompt.txt")  # fmt: skip
MERGED_FILES = r"(model.*\.safetensors|model\.safetensors\.index\.json|.*config\.json|tokenizer.*|special_tokens_map\.json|chat_template\.jinja|vocab\.json|merges\.txt|serving\.json)"
SECRET = re.compile(rb"\b(hf_[A-Za-z0-9]{30,}|ms-[0-9a-f]{8}-[0-9a-f-]{20,}|sk-[A-Za-z0-9]{30,})")


@dataclass
class Args:
    adapter: str | None = arg(
        None, "a finished run's folder (default: the newest of all recipes); also without the flag"
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    to: str | None = arg(None, "the repository: <account>/<name>")
    what: Literal["adapter", "merged", "gguf"] = arg("adapter", "the run's own adapter, or what export.py made of it")
    hub: Literal["hf", "modelscope"] = arg("hf", "hf: Hugging Face (or HF_ENDPOINT's mirror)")
    public: bool = arg(False, "everybody can read it; otherwise only you")
    dry_run: bool = arg(False, "print what would go up, and end")
    ungated: bool = arg(False, "upload though gate.py has not passed")


def chosen(what: str, run, exported: Path | None) -> dict:
    """{name on the hub: file here} of what goes up."""
    if what == "adapter":
        return {name: run.adapter / name for name in ADAPTER_FILES if (run.adapter / name).is_file()}
    if exported is None:
        raise SystemExit(f"nothing was exported of {run.adapter}: {command('export.py', run.adapter)}")
    if what == "merged":
        found = {
            file.name: file for file in sorted((exported / "merged").glob("*")) if re.fullmatch(MERGED_FILES, file.name)
        }
    else:
        found = {
            file.name: file for file in [*sorted(exported.glob("*.gguf")), exported / "Modelfile"] if file.is_file()
        }
    if not any(name.endswith((".safetensors", ".gguf")) for name in found):
        raise SystemExit(f"{exported} holds no {what}: {command('export.py', run.adapter, '--to', what)}")
    return found


def refuse_secrets(files: dict):
    """Stop at a file that is a link to elsewhere, or holds what looks like an access token."""
    for name, file in files.items():
        if file.is_symlink() and not file.resolve().is_relative_to(file.parent.resolve()):
            raise SystemExit(f"{file} is a link to another place: copy the file itself.")
        if file.stat().st_size < 5_000_000 and SECRET.search(file.read_bytes()):
            raise SystemExit(f"{name} holds what looks like an access token. Take it out; nothing was uploaded.")


def card(run, what: str, gate: dict) -> str:
    """README.md of the repository: what it is, how it was trained, how far each file is from the trained model."""
    serving, _ = contract(run)
    arguments, record = run.arguments, run.record
    base = serving["base"] if re.fullmatch(r"[\w.-]+/[\w.-]+", serving["base"]) else Path(serving["base"]).name
    library = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[what]
    relation = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}[what]
    lines = [
        f"---\nbase_model: {base}\nbase_model_relation: {relation}\nlibrary_name: {library}\ntags: [lora, {serving['task']}]\n---",
        f"# {name_of(run)}\n",
        f"LoRA (r {serving['r']}, alpha {serving['alpha']}) on {base}, trained by the recipe `{serving['task']}`"
        + (f": {record['steps']:,} steps, {record.get('seconds', 0):,} s on {record.get('device')}." if record.get("steps") else "."),
        f"\n- learning rate {arguments['learning_rate']}" if arguments.get("learning_rate") else "",
        f"- asked {'one question at a time' if serving['turns'] == 'single' else 'with history'}, in the template that is "
        "saved with it (`serving_template.jinja`, and as the chat template of merged and GGUF files)",
        f"- an answer ends at {', '.join(f'`{stop}`' for stop in serving['stop'])}",
    ]  # fmt: skip
    arms = [arm for arm in gate.get("arms", ()) if arm["limit"]]
    if arms:
        lines += [f"\nCompared with the trained adapter on {gate['texts']} held-out texts, {gate['tokens']:,} tokens:\n",
                  "| file | share of the training in it | KL per token |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {arm['arm']} | {arm['slope']:.3f} | {arm['kl']:.2g} |" for arm in arms]
    return "\n".join(line for line in lines if line) + "\n"


class HuggingFace:
    """The five things that are asked of a hub; the other one looks the same."""

    def __init__(self):
        from huggingface_hub import HfApi

        self.api = HfApi()

    def account(self):
        return self.api.whoami()["name"]

    def create(self, repo, private):
        self.api.create_repo(repo, private=private, exist_ok=True)

    def is_private(self, repo):
        return bool(self.api.repo_info(repo).private)

    def upload(self, repo, folder):
        self.api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="upload")

    def listing(self, repo) -> dict:
        """{name: (bytes, sha256 or None)} of what is there."""
        info = self.api.model_info(repo, files_metadata=True)
        return {each.rfilename: (each.size, each.lfs and each.lfs.sha256) for each in info.siblings}


class ModelScope:
    def __init__(self):
        try:
            from modelscope_hub import HubApi
        except ImportError:
            raise SystemExit("--hub modelscope needs ModelScope's client: pip install modelscope-hub") from None
        self.api = HubApi(token=os.environ.get("MODELSCOPE_API_TOKEN"))

    def account(self):
        return self.api.whoami().username

    def create(self, repo, private):
        if not self.api.repo_exists(repo, "model"):
            self.api.create_repo(repo, "model", visibility="private" if private else "public")

    def is_private(self, repo):
        found = self.api.get_repo(repo, "model")
        return bool(found.private) or str(getattr(found.visibility, "value", found.visibility)) in ("1", "private")

    def upload(self, repo, folder):
        self.api.upload_folder(repo_id=repo, repo_type="model", folder_path=str(folder), commit_message="upload")

    def listing(self, repo) -> dict:
        return {
            each.path: (each.size, each.sha256) for each in self.api.list_repo_files(repo, "model") if not each.is_dir
        }


HUBS = {"hf": HuggingFace, "modelscope": ModelScope}


def compare(files: dict, there: dict) -> list[str]:
    """What of the uploaded files is missing or different on the hub."""
    wrong = []
    for name, file in files.items():
        size, digest = there.get(name, (None, None))
        if size is None:
            wrong.append(f"{name} is not there")
        elif size != file.stat().st_size:
            wrong.append(f"{name} has {size:,} bytes there, {file.stat().st_size:,} here")
        elif digest and digest != sha256(file):
            wrong.append(f"{name} is another file there")
    return wrong


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    if not args.to or not re.fullmatch(r"[\w.-]+/[\w.-]+", args.to):
        raise SystemExit("push.py: error: --to ACCOUNT/NAME is needed: the repository to write to.")
    hub = None if args.dry_run else HUBS[args.hub]()  # a client that is not installed is said before anything is read
    run = open_run(args.adapter, args.model)
    exported = newest_export(run)
    files = chosen(args.what, run, exported)
    refuse_secrets(files)
    gate = read_json(exported / "gate.json") if exported else {}
    if args.what != "adapter" and gate.get("code") != 0 and not (args.ungated or args.dry_run):
        raise SystemExit(f"gate.py has not passed these files: {command('gate.py', run.adapter)}   (or --ungated)")
    readme = card(run, args.what, gate)
    print(text_table(("file", "bytes"), [(name, f"{file.stat().st_size:,}") for name, file in files.items()]))
    who = "everybody can read it" if args.public else "private"
    print(f"{len(files)} files and a card, {sum(file.stat().st_size for file in files.values()) / 1e6:,.1f} MB -> {args.hub}: "
          f"{args.to} ({who})")  # fmt: skip
    if args.dry_run:
        return print(f"README.md:\n{readme}\n--dry_run: nothing was uploaded.")
    with tempfile.TemporaryDirectory(dir=run.adapter, prefix=".push-") as scratch:
        for name, file in files.items():
            try:
                os.symlink(file.resolve(), Path(scratch) / name)
            except OSError:  # Windows asks for a right
                shutil.copyfile(file, Path(scratch) / name)
        (Path(scratch) / "README.md").write_text(readme, encoding="utf-8")
        try:
            hub.account()
            hub.create(args.to, not args.public)
            if not args.public and not hub.is_private(args.to):
                raise SystemExit(f"{args.to} exists and is public. Give another name, or --public true.")
            hub.upload(args.to, Path(scratch))
            wrong = compare(files | {"README.md": Path(scratch) / "README.md"}, hub.listing(args.to))
        except SystemExit:
            raise
        except Exception as error:  # no network, no account, no right: all end in the same line
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            login = "hf auth login" if args.hub == "hf" else "export MODELSCOPE_API_TOKEN=..."
            raise SystemExit(
                f"{args.hub}: {reason}\nIs there an account ({login}), and may it write to {args.to}?"
            ) from None
    if wrong:
        raise SystemExit("the upload is not whole:\n  " + "\n  ".join(wrong) + "\nThe same command goes on.")
    print(f"uploaded and read back: {len(files) + 1} files")


if __name__ == "__main__":
    main()
