"""The alpaca recipe and its four relatives, run as a user runs them, on a tiny model."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import models, tokens

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "alpaca"
OTHERS = ("prompt_completion", "chat_template", "conversational", "plain_trainer")
ROWS = [
    {"instruction": "What comes next?", "input": "1, 1, 2, 3, 5, 8", "output": "In short: 13."},
    {"instruction": "天空为什么是蓝色的？", "input": "", "output": "简答：蓝光。"},
]


@pytest.fixture(scope="module")
def alpaca(modules_of):
    """The folder's modules; those of the four others by their short names."""
    names = ("prompt", "data", "trl_rows", "train", *(f"train_{other}" for other in OTHERS), "infer", "evaluate")
    return SimpleNamespace(**{name.removeprefix("train_"): m for name, m in vars(modules_of("alpaca", names)).items()})


@pytest.fixture
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def counted(tokenizer, labels):
    return tokenizer.decode([token for token in labels if token != -100])


# -- templates and masks


def test_the_two_templates_and_the_end(alpaca, tokenizer):
    ids, labels = alpaca.prompt.encode(tokenizer, ROWS)
    assert tokenizer.decode(ids[0]) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nWhat comes next?\n\n### Input:\n"
        "1, 1, 2, 3, 5, 8\n\n### Response:\nIn short: 13.<|im_end|>"
    )
    assert tokenizer.decode(ids[1]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n天空为什么是蓝色的？\n\n### Response:\n简答：蓝光。<|im_end|>"
    )
    assert labels == ids  # the course's way


def test_loss_on_answer_counts_the_answer_and_its_end(alpaca, tokenizer):
    ids, labels = alpaca.prompt.encode(tokenizer, ROWS, loss_on="answer")
    assert [counted(tokenizer, row) for row in labels] == [row["output"] + "<|im_end|>" for row in ROWS]
    for prompt, row in zip(alpaca.prompt.prompt_ids(tokenizer, ROWS), ids, strict=True):
        assert row[: len(prompt)] == prompt


def test_braces_in_a_row_are_text(alpaca):
    row = {"instruction": "Explain {input} and {}", "input": "{instruction}", "output": "x"}
    assert "### Instruction:\nExplain {input} and {}\n\n### Input:\n{instruction}\n" in alpaca.prompt.prompt_text(row)


def trl_set(alpaca, way, tokenizer, tiny_model, tmp_path, rows):
    """The training set as TRL leaves it."""
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    module = getattr(alpaca, way)
    if way == "conversational":
        module.mark_assistant(tokenizer)
    flags = {
        name: module.DEFAULTS[name]
        for name in ("assistant_only_loss", "completion_only_loss")
        if name in module.DEFAULTS
    }
    config = SFTConfig(output_dir=str(tmp_path), max_length=2048, use_cpu=True, bf16=False, **flags)
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        processing_class=tokenizer,
        args=config,
        train_dataset=module.dataset(rows, tokenizer, 2048, "rows"),
    ).train_dataset


def test_three_ways_to_the_same_mask(alpaca, tokenizer, tiny_model, tmp_path):
    """apply_chat_template here, TRL's assistant_only_loss, a search for tokens: the same ids and the same labels."""
    made = alpaca.chat_template.encode(tokenizer, ROWS)
    assert alpaca.plain_trainer.encode(tokenizer, ROWS) == made
    by_trl = trl_set(alpaca, "conversational", tokenizer, tiny_model, tmp_path, ROWS)
    assert (by_trl["input_ids"][:], by_trl["labels"][:]) == made
    for row, ids, labels in zip(ROWS, *made, strict=True):
        assert counted(tokenizer, labels) == row["output"] + "<|im_end|>"
        asked = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        assert tokenizer.decode(ids) == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{asked}<|im_end|>\n<|im_start|>assistant\n{row['output']}<|im_end|>\n"
        )


def test_prompt_and_completion_are_train_py_with_loss_on_answer(alpaca, tokenizer, tiny_model, tmp_path):
    by_trl = trl_set(alpaca, "prompt_completion", tokenizer, tiny_model, tmp_path, ROWS)
    assert (by_trl["input_ids"][:], by_trl["labels"][:]) == alpaca.prompt.encode(tokenizer, ROWS, loss_on="answer")


def test_every_turn_of_the_assistant_is_found(alpaca, tokenizer):
    header, end = alpaca.plain_trainer.assistant_header(tokenizer), tokenizer.eos_token_id
    assert tokenizer.decode(header) == "<|im_start|>assistant\n"
    ids = tokenizer(
        "<|im_start|>assistant\nOne.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n3"
    ).input_ids
    labels = alpaca.plain_trainer.assistant_labels(ids, header, end)
    assert counted(tokenizer, labels) == "One.<|im_end|>3"


def test_why_the_marks_are_ours(alpaca, tokenizer):
    """TRL does not know SmolLM2's template, and in Qwen2.5's it also marks the line breaks around the answer."""
    import trl.chat_template_utils as known

    with pytest.raises(ValueError, match="not training-compatible"):
        known.get_training_chat_template(tokenizer)
    tokenizer.chat_template = known.qwen2_5_chat_template
    options = dict(return_assistant_tokens_mask=True, return_dict=True)
    talk, marked = alpaca.prompt.conversation(ROWS[0]), []
    for template in (known.get_training_chat_template(tokenizer), alpaca.conversational.MARKED):
        made = tokenizer.apply_chat_template(talk, chat_template=template, **options)
        pairs = zip(made["input_ids"], made["assistant_masks"], strict=True)
        marked.append(tokenizer.decode([token for token, counts in pairs if counts]))
    assert marked == ["\nIn short: 13.<|im_end|>\n", "In short: 13.<|im_end|>"]
    assert alpaca.conversational.mark_assistant(tokenizer) == known.qwen2_5_chat_template  # Qwen2.5's is ChatML, too


def test_another_template_than_chatml_is_refused(alpaca, tokenizer):
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}"
    )
    with pytest.raises(SystemExit, match="is not ChatML"):
        alpaca.conversational.mark_assistant(tokenizer)
    with pytest.raises(SystemExit, match="does not end it with"):
        alpaca.chat_template.encode(tokenizer, ROWS)


def test_the_collator_written_out_pads_labels_with_what_the_loss_skips(alpaca):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = alpaca.plain_trainer.collate(rows, pad=0)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]], "labels": [[-100, 6, 7], [8, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }  # fmt: skip


def test_a_packed_batch_has_the_loss_of_its_rows(alpaca, tokenizer, tiny_model):
    """Weighted by tokens: what it would be if each row were alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from common.speed.packing import collator

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    pairs = zip(*alpaca.prompt.encode(tokenizer, ROWS, loss_on="answer"), strict=True)
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
    alone, counts = [], []
    with torch.no_grad():
        for row in rows:
            alone.append(model(**{name: torch.tensor([values]) for name, values in row.items()}).loss.item())
            counts.append(sum(label != -100 for label in row["labels"]))
        packed = model(**collator(tokenizer, True, "hf")(rows), use_cache=False).loss
    weighted = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert counts[0] != counts[1] and alone[0] != pytest.approx(alone[1], rel=1e-4)
    assert packed.item() == pytest.approx(weighted, rel=1e-6)


def test_padding_share(alpaca):
    assert alpaca.train.padding_share([10, 10, 10, 10], 2) == 0
    assert alpaca.train.padding_share([1, 9], 2) == pytest.approx(8 / 18)
    assert alpaca.train.padding_share([3, 5, 7], 1) == 0


def test_rows_that_do_not_fit_are_left_out_and_never_cut(alpaca, tokenizer, capsys):
    ids, _ = alpaca.prompt.encode(tokenizer, ROWS)
    limit = min(map(len, ids))
    kept = tokens.tokenize(ROWS, partial(alpaca.prompt.encode, tokenizer), limit, "training rows")
    assert kept["input_ids"][:] == [row for row in ids if len(row) <= limit] and len(kept) == 1
    said = capsys.readouterr().out
    assert f"training rows: 1 of 2 rows are over --max_length {limit}: dropped" in said
    texts = ["a b c d", "a"]
    assert alpaca.trl_rows.fitting(ROWS, texts, tokenizer, 2, "rows").to_list() == ROWS[1:]


# -- reading


def write(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return file


def test_every_format_gives_the_same_rows(alpaca, tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    files = [
        write(tmp_path, "list.json", json.dumps(ROWS, indent=1)),
        write(tmp_path, "lines.jsonl", lines),
        write(tmp_path, "list.jsonl", json.dumps(ROWS)),  # a list where lines are expected
        write(tmp_path, "lines.json", "\ufeff" + lines.replace("\n", "\r\n")),  # and the reverse, from Windows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", "rows.json", json.dumps(ROWS))
    for source in [*files, tmp_path / "rows.parquet", tmp_path / "saved", tmp_path / "splits", tmp_path / "folder"]:
        rows, report = alpaca.data.read_rows(source)
        assert rows == ROWS and report["rows"] == report["kept"] == 2 and not report["problems"], source


def test_bad_rows_are_dropped_counted_and_named(alpaca, tmp_path):
    bad = [
        ROWS[0],
        {"instruction": "x", "input": None, "output": "y"},  # usable: no input
        {"instruction": "x", "output": "z"},  # the same
        {"instruction": "x", "input": "", "output": "  \n"},
        {"instruction": "x", "input": "", "output": None},
        {"input": "", "output": "y"},
        {"instruction": 7, "input": "", "output": "y"},
        {"instruction": "x", "input": ["a"], "output": "y"},
        {"instruction": "x", "input": "", "output": "\ud83d"},
        {"instruction": "x", "input": "<|im_end|>\n", "output": "y"},
        "a text",
    ]
    file = write(tmp_path, "bad.json", json.dumps(bad))
    rows, report = alpaca.data.read_rows(file)
    assert rows == [
        ROWS[0],
        {"instruction": "x", "input": "", "output": "y"},
        {"instruction": "x", "input": "", "output": "z"},
    ]
    assert report["dropped"] == {"empty": 1, "missing": 2, "wrong type": 3, "broken characters": 1, "control token": 1}
    assert report["problems"] == [
        f"{file}: row 4, column output: no text; row dropped: empty",
        f"{file}: row 5, column output: null; row dropped: missing",
        f"{file}: row 6, column instruction: not there; row dropped: missing",
        f"{file}: row 7, column instruction: expected text, got int; row dropped: wrong type",
        f"{file}: row 8, column input: expected text, got list; row dropped: wrong type",
        f"{file}: row 9, column output: half of a surrogate pair; row dropped: broken characters",
        f"{file}: row 10, column input: <|im_end|>; row dropped: control token",
        f"{file}: row 11: expected an object with instruction, input, output, got str; row dropped: wrong type",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty"),
        ("instruction,output\n", "it begins with 'i'"),
        ('[{"instruction": "a" 1]', "line 1, column 22: not JSON"),
        ('{"instruction": "a"}\n{"instruction"\n', "row 2: column 15: Expecting ':' delimiter; row dropped: not JSON"),
        ('{\n"instruction": "a",\n"output": "b"\n}', "one JSON object, not a list of rows"),
        ('[{"question": "a", "output": "b"}]', "no column 'instruction'. Columns found: output, question."),
        ("[]", "no usable row"),
        ('[{"instruction": "a", "output": ""}]', "column output: no text; row dropped: empty"),
        ('[{"instruction": "天"}]'.encode("gbk"), "no column 'output'"),
        ('[{"instruction": "Qu’est-ce que c’est ? L’été, déjà."}]'.encode("cp1252"), "neither UTF-8 nor GB18030"),
        (b"PAR1 and no more", "not a complete Parquet file"),
    ],
)
def test_files_that_cannot_be_read(alpaca, tmp_path, content, said):
    file = write(tmp_path, "rows.json", content)
    with pytest.raises(SystemExit) as stop:
        alpaca.data.read_rows(file)
    assert said in str(stop.value) and str(file) in str(stop.value)


def test_places_that_hold_no_rows(alpaca, tmp_path):
    import datasets

    for source, said in (
        ("nowhere.json", "no such file or folder"),
        ("nobody/nothing", "the hub did not give it"),
        (tmp_path, "no .json, "),
    ):
        with pytest.raises(SystemExit, match=said):
            alpaca.data.read_rows(source)
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "test-only")
    with pytest.raises(SystemExit, match="no split 'train'; splits found: test"):
        alpaca.data.read_rows(tmp_path / "test-only")


def test_the_split_is_by_question_and_by_seed(alpaca):
    rows = [{"instruction": f"q{n // 2}", "input": "", "output": f"a{n}"} for n in range(200)]
    train, held = alpaca.data.split(rows, 0.1, 42)
    assert len(train) == 180 and len(held) == 20 and sorted(map(str, train + held)) == sorted(map(str, rows))
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in held}
    assert alpaca.data.split(rows, 0.1, 42) == (train, held)
    assert alpaca.data.split(rows, 0.1, 43)[1] != held
    with pytest.raises(SystemExit, match="1 different row"):
        alpaca.data.split(rows[:2], 0.1, 42)
    with pytest.raises(SystemExit, match="between 0 and 1"):
        alpaca.data.split(rows, 1.0, 42)


def test_check_reports_and_writes(script, tmp_path):
    file = write(tmp_path, "rows.json", json.dumps([*ROWS, {"instruction": "x", "output": ""}]))
    out = tmp_path / "clean.jsonl"
    said = script(TASK / "data.py", "--check", file, "--out", out).stdout
    assert f"{file}: 3 rows, 2 kept; dropped: 1 empty" in said and "without input: 1 rows" in said
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == ROWS
    again = script(TASK / "data.py", "--check", file, "--out", out, check=False)
    assert again.returncode and "exists and is kept" in again.stderr


def test_the_sample_has_one_form(alpaca):
    rows, report = alpaca.data.read_rows(TASK / "sample" / "alpaca.jsonl")
    assert (report["rows"], report["kept"], sum(not row["input"] for row in rows)) == (80, 80, 40)
    form = re.compile(r"In short: .+\. Why: .+\.|简答：.+。原因：.+。")
    assert all(form.fullmatch(row["output"]) for row in rows)


# -- runs


def losses(folder):
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {log["step"]: log["loss"] for log in logs if "loss" in log}


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, demo_model, tmp_path):
    """cp -r alpaca elsewhere; python train.py --demo --max_steps 2; infer.py; evaluate.py: nothing else of the repo."""
    from safetensors.torch import load_file

    task = copied("alpaca")
    shown = script(task / "train.py", "--demo", "--max_steps", 2, "--max_new_tokens", 4, "--show_mask", 1).stdout
    (folder,) = (tmp_path / "outputs" / "alpaca").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        ".lock", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "checkpoint-2", "heldout.jsonl",
        "loss.png", "metrics.jsonl", "prompt_template.txt", "prompt_template_short.txt", "README.md", "run.json",
        "serving.json", "serving_template.jinja", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((folder / "run.json").read_text())["status"] == "finished" and set(losses(folder)) == {1, 2}
    weights = load_file(folder / "adapter_model.safetensors")
    assert len([name for name, tensor in weights.items() if "lora_B" in name and tensor.abs().max() > 0]) == 30 * 7
    assert re.search(r"held-out perplexity: [\d.]+ before, [\d.]+ after \(8 rows", shown)
    assert "⟦Below is an instruction" in shown and shown.count("before:  ") == shown.count("after:  ") == 3

    said = script(task / "infer.py", "--max_new_tokens", 3).stdout
    assert f"adapter: {folder}\nContinue the fibonnaci sequence.\n1, 1, 2, 3, 5, 8\n" in said


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Each of the four scripts, one step on the tiny model in float32: name -> (its output, its folder)."""
    import os
    import subprocess

    outputs, done = tmp_path_factory.mktemp("runs"), {}
    for name in OTHERS:
        environment = os.environ | {"OUTPUT_DIR": str(outputs / name), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, TASK / f"train_{name}.py", "--demo", "--model", tiny_model, "--max_steps", "1"]
        command += ["--bf16", "false", "--eval_strategy", "no", "--load_best_model_at_end", "false", "--show_mask", "1"]
        ran = subprocess.run(
            [*map(str, command)], cwd=outputs, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        (folder,) = (outputs / name / "alpaca").iterdir()
        done[name] = (ran.stdout, folder)
    assert {path.name for path in outputs.iterdir()} == set(OTHERS)  # no trainer_output left behind
    return done


@pytest.mark.slow
def test_the_last_three_begin_at_the_same_loss(runs):
    first = {name: losses(folder)[1] for name, (_, folder) in runs.items()}
    assert first["chat_template"] == pytest.approx(first["conversational"], rel=1e-6)
    assert first["chat_template"] == pytest.approx(first["plain_trainer"], rel=1e-6)
    assert first["prompt_completion"] != pytest.approx(first["chat_template"], rel=1e-4)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.slow
def test_each_script_leaves_a_finished_run(runs, name, tokenizer):
    from common.models import load_tokenizer

    said, folder = runs[name]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert "⟦In short: " in said and "<|im_end|>⟧" in said and "plan: 72 rows" in said
    assert (folder / "prompt_template.txt").exists() == (name == "prompt_completion")
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template  # without marks


@pytest.mark.slow
def test_a_file_of_rows_is_answered(runs, script, tmp_path):
    questions = write(tmp_path, "rows.jsonl", '{"instruction": "Name a river."}\n')
    script(TASK / "infer.py", "--adapter", runs["plain_trainer"][1], "--file", questions, "--max_new_tokens", 3)
    (written,) = map(json.loads, (tmp_path / "rows.jsonl.answers.jsonl").read_text("utf-8").splitlines())
    assert set(written) == {"instruction", "input", "answer"} and written["instruction"] == "Name a river."
    again = script(TASK / "infer.py", "--adapter", runs["plain_trainer"][1], "--file", questions, check=False)
    assert again.returncode and "exists and is kept" in again.stderr


@pytest.mark.slow
def test_an_adapter_is_asked_and_measured_in_the_form_it_was_trained_in(alpaca, runs, script, tokenizer, monkeypatch):
    monkeypatch.setattr(models, "TASK_DIR", TASK)
    ways = (models.open_run(runs[name][1]).texts for name in ("conversational", "prompt_completion"))
    (chat,), (plain,) = (alpaca.prompt.prompt_ids(tokenizer, ROWS[:1], texts) for texts in ways)
    assert tokenizer.decode(chat).endswith("What comes next?\n\n1, 1, 2, 3, 5, 8<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(plain).endswith("### Input:\n1, 1, 2, 3, 5, 8\n\n### Response:\n")
    folder = runs["conversational"][1]
    script(TASK / "evaluate.py", "--adapter", folder, "--limit", 3, "--max_new_tokens", 4, "--rouge")
    results = folder / "evaluation_results"
    assert {"metrics.json", "predictions.jsonl", "report.html"} <= {file.name for file in results.iterdir()}
    pairs = [json.loads(line) for line in (results / "predictions.jsonl").read_text("utf-8").splitlines()]
    rows, _ = alpaca.data.read_rows(TASK / "sample" / "alpaca.jsonl")
    held_out = alpaca.data.split(rows, 0.1, 42)[1][:3]
    assert [pair["reference"] for pair in pairs] == [row["output"] for row in held_out]


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("train.py", ["--data", "nowhere.json"], "nowhere.json: no such file or folder"),
        pytest.param(
            "train.py", ["--max_length", "20"], "training rows: no row fits in --max_length 20", marks=pytest.mark.slow
        ),
        ("train_plain_trainer.py", ["--packing"], "unknown flag --packing"),
        ("train_prompt_completion.py", ["--packing"], "unknown flag --packing"),
        ("train_conversational.py", ["--auto"], "unknown flag --auto"),
        ("evaluate.py", ["--eval_ratio", "0.2"], "unknown flag --eval_ratio"),
        ("infer.py", ["--input", "1, 2"], "--input belongs to an --instruction"),
    ],
)
def test_bad_input_is_said_in_a_line_before_a_model_loads(script, file, arguments, said):
    demo = ["--demo"] if file.startswith("train") else []
    done = script(TASK / file, *demo, *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("preset", ["fast.yaml", "course.yaml"])
def test_presets_name_flags_that_exist(script, preset):
    done = script(TASK / "train.py", "--config", TASK / preset, "--data", "nowhere.json", check=False)
    # The course's preset asks for Unsloth; the other one gets as far as the data.
    assert "nowhere.json: no such file" in done.stderr or "--backend unsloth needs an NVIDIA GPU" in done.stderr


def test_the_five_scripts_train_alike(alpaca):
    """The four others are written as what differs; here is all that may."""
    differing = {
        "prompt_completion": {"completion_only_loss": True, "dataset_kwargs": None},
        "chat_template": {},
        "conversational": {"assistant_only_loss": True, "dataset_kwargs": None},
        "plain_trainer": {
            "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "label_names": ["labels"], "prediction_loss_only": True,
        },
    }  # fmt: skip
    base = alpaca.train.DEFAULTS
    for name, found in differing.items():
        defaults = getattr(alpaca, name).DEFAULTS
        assert {key: value for key, value in defaults.items() if base.get(key) != value or key not in base} == found
        assert set(base) - set(defaults) == ({"dataset_kwargs"} if name == "plain_trainer" else set()), name
