"""Paths, models and the record of a run."""

import json
import os
import shutil
from pathlib import Path

import pytest

from common import answers, device, hub, models, paths, runs
from common.files import write_json


def dataset(*rows):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": list(rows), "labels": [[-100] + row[1:] for row in rows]})


def test_env_file_fills_what_the_environment_leaves_open(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("# a comment\nDATA_DIR=/from/file\nOUTPUT_DIR=/from/file\nMODELS_DIR=\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_DIR", "MODELS_DIR", "MEDICAL_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTPUT_DIR", "/from/environment")
    paths.load_env()
    assert paths.data_dir("medical") == Path("/from/file/medical")
    assert paths.output_dir("medical") == Path("/from/environment/medical")
    root = paths.AUTODL if paths.AUTODL.is_dir() else tmp_path
    assert paths.models_dir() == root / "models"  # NAME= is not set, not the working folder
    monkeypatch.setenv("MEDICAL_DATA_DIR", "/own")
    assert paths.data_dir("medical") == Path("/own")


@pytest.mark.parametrize("place", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2___5-7B-Instruct"])
def test_a_model_is_found_in_either_spelling(tmp_path, monkeypatch, place):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "config.json").write_text("{}")
    assert hub.resolve_model("Qwen/Qwen2.5-7B-Instruct") == tmp_path / place
    assert hub.resolve_model(str(tmp_path / place)) == tmp_path / place


def test_the_hubs_name_is_read_in_any_case_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    for source, said in (
        ("ModelScope", "the hub modelscope"),
        ("HuggingFace", "the hub huggingface"),
        ("hf", "expected huggingface or modelscope"),
    ):
        monkeypatch.setenv("MODEL_SOURCE", source)
        with pytest.raises(SystemExit, match=said):
            hub.resolve_model("org/no-such-model")


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match="is a LoRA adapter, not a model"):
        hub.resolve_model(str(tmp_path))


def test_a_full_or_closed_disk_is_said_first(tmp_path, monkeypatch):
    with pytest.raises(
        SystemExit, match=r"not enough disk space for checkpoints: .* GB free, about 1e\+06|1000000.0 GB"
    ):
        paths.check_disk(tmp_path, 10**15, "checkpoints")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to"):
        paths.check_disk(tmp_path / "file" / "folder", 1, "checkpoints")


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 100)
    with pytest.raises(SystemExit, match=r"holds no \*\.safetensors"):
        hub.choose_quantization("none", tmp_path)


def test_demo_model_ids_and_end(demo_model):
    from transformers import AutoModelForCausalLM

    from common.demo_model import _check

    tokenizer = models.load_tokenizer(demo_model)
    _check(AutoModelForCausalLM.from_pretrained(demo_model), tokenizer)  # probe ids, round trips, stops at eos
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_pad_is_never_eos(demo_model, tmp_path):
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    assert models.load_tokenizer(tmp_path).pad_token == "<|endoftext|>"


def test_digest_sees_every_value_and_where_rows_end():
    one = runs.dataset_digest(dataset([1, 2, 3], [4, 5]))
    assert one == runs.dataset_digest(dataset([1, 2, 3], [4, 5]))
    others = [dataset([1, 2, 3], [4, 6]), dataset([1, 2], [3, 4, 5]), dataset([4, 5], [1, 2, 3]), dataset([1, 2, 3])]
    assert len({one, *map(runs.dataset_digest, others)}) == 5
    assert (
        runs.dataset_digest(dataset([0, 0], [1, 2, 3], [4, 5]).select([1, 2])) == one
    )  # a view digests as what it shows


@pytest.mark.parametrize(("most", "chunk"), [(4096, 1024), (4, 2)])
def test_heldout_loss_is_token_weighted_and_sees_only_labels(tiny_model, monkeypatch, most, chunk):
    """Against the definition: -log p of each labelled token, one row at a time, no padding; however it is cut."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(answers, "TOKENS", most)
    monkeypatch.setattr(answers, "CHUNK", chunk)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    rows = dataset([5, 6, 7, 8, 9], [10, 11], [12, 13, 14])
    total, count = 0.0, 0
    for row in rows:
        logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"][1:]):
            total, count = total - logs[position, label].item(), count + 1
    measured = answers.heldout_loss(model, rows, pad_token_id=0, batch_size=2)
    assert (measured["tokens"], measured["rows"]) == (count, 3) == (7, 3)
    assert measured["loss"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.slow
def test_batched_answers_equal_single_ones(demo_model):
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = models.load_tokenizer(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "One, two, three, four,", "Water")]
    batched = answers.generate(model, tokenizer, prompts, max_new_tokens=8)
    single = [answers.generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert batched == single and "Paris" in batched[0] and "five" in batched[1]


def finished(folder, **record):
    """A finished run's folder, with as little in it as can be."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}')
    write_json(folder / "run.json", {"status": "finished"} | record)
    return folder


def test_newest_is_what_was_finished_last_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "output_dir", lambda: tmp_path)
    with pytest.raises(SystemExit, match="no finished run"):
        models.latest()
    finished(tmp_path / "my-first-try", finished=100.0)
    finished(tmp_path / "20260101-000000", finished=300.0)
    finished(tmp_path / "zz", status="unfinished")
    assert models.latest().name == "20260101-000000"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("[1]")
    os.utime(finished(tmp_path / "of-the-old-code") / "run.json", (400, 400))  # it has no time: its file's counts
    assert models.latest().name == "of-the-old-code"


def test_a_run_of_another_task_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match="it is a run of s1_scaling"):
        models.open_run(finished(tmp_path / "a", task="s1_scaling"))
    with pytest.raises(SystemExit, match=r"it has no prompt_template\.txt"):
        models.open_run(finished(tmp_path / "b"), needed=["prompt_template"])


def test_an_env_file_that_is_not_utf8_is_named(tmp_path, monkeypatch):
    (tmp_path / ".env").write_bytes("DATA_DIR=/数据\n".encode("gb18030"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"\.env: not UTF-8"):
        paths.load_env()


def test_only_documented_names_are_read_from_an_env_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("LD_PRELOAD=/evil.so\nMODEL_SOURCE=modelscope\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SOURCE", "")
    monkeypatch.delenv("MODEL_SOURCE")
    paths.load_env()
    assert "LD_PRELOAD" not in os.environ and os.environ.pop("MODEL_SOURCE") == "modelscope"
    documented = (Path(__file__).resolve().parents[1] / ".env.example").read_text().splitlines()
    names = {line[:-1] for line in documented if line.endswith("=") and not line.startswith("#")}
    assert {name for name in names if not name.endswith("_DATA_DIR")} == set(paths.VARIABLES)


def test_a_command_is_printed_as_it_is_typed_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(paths.TASK_DIR)
    assert paths.command("infer.py", "--adapter", paths.TASK_DIR / "out put") == "python infer.py --adapter 'out put'"
    monkeypatch.chdir(tmp_path)
    assert paths.command("infer.py") == f"python {paths.TASK_DIR}/infer.py"


def test_a_table_knows_that_chinese_is_wide():
    from rich.cells import cell_len

    from common.files import text_table

    table = text_table(("name", "rows", ""), [("内科", "1,204", "好"), ("a", "7", "")]).splitlines()
    ends = [
        cell_len(line[: line.index(each) + len(each)]) for line, each in zip(table[1:], ("1,204", "7"), strict=True)
    ]
    assert ends[0] == ends[1]


def test_copies_of_common_are_the_same():
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, root / "tools" / "sync_common.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_cudnn_attention_is_off_once_a_backend_is_chosen():
    """Its gradient is NaN at some lengths on Hopper (tests/gpu_equality.py shows it); every model is loaded after this."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(True)
    device.decide_backend.cache_clear()
    assert device.decide_backend("hf") == "hf" and not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda folder: os.truncate(folder / "a.safetensors", 100), "a.safetensors is cut off or damaged"),
        (lambda folder: os.truncate(folder / "a.safetensors", 4), "a.safetensors is cut off or damaged"),
        (lambda folder: (folder / "b.safetensors").unlink(), "b.safetensors is missing"),
        (
            lambda folder: (folder / "b.safetensors").write_bytes(b"<html>403</html>"),
            "b.safetensors is cut off or damaged",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map'), "index.json is cut off"),
    ],
)
def test_a_download_that_broke_off_is_not_a_model(tmp_path, spoil, wrong):
    import torch
    from safetensors.torch import save_file

    from common.hub import resolve_model

    for name in "ab":
        save_file({name: torch.zeros(100)}, tmp_path / f"{name}.safetensors")
    weights = {"a": "a.safetensors", "b": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path
    spoil(tmp_path)
    with pytest.raises(SystemExit, match=wrong):
        resolve_model(str(tmp_path))
