"""preference/: what its data come from and are compared with: votes of deploy/, a reward model of rlhf_ppo/, figures of runs."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
FILES = ("prompt", "sources", "judge", "data", "gold", "pairs", "policy", "watch", "dpo", "kto", "questions")
PAIRS = [  # prompt, chosen, rejected
    ("ask one", "a short one", "something much longer than that, on and on"),
    ("and another question", "yes, of course it is so", "no"),
    ("what is it", "nothing", "all and more"),
    ("why", "because of the rain in spring", "I would rather not say"),
]


@pytest.fixture(scope="module")
def task(modules_of):
    made, before = modules_of("preference", FILES), {name: sys.modules.get(name) for name in FILES}
    sys.modules.update(vars(made))
    yield made
    for name, module in before.items():
        sys.modules.pop(name)
        if module:
            sys.modules[name] = module


def test_votes_and_thumbs_of_deploy_are_read_as_they_are_written(task, modules_of, tmp_path):
    """The two logs as compare_web.py and ab_proxy.py write them, through votes.py, into both readers."""
    votes = modules_of("deploy", ("votes",)).votes
    ask = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "头痛怎么办？"}]
    for number, winner in enumerate(("tuned", "base", "tie")):
        answers = {"tuned": f"休息一下 {number}", "base": f"I don't know {number}"}
        votes.append(tmp_path / "votes.jsonl", dict(id=f"v{number}", messages=ask, answers=answers, winner=winner))
    for number, thumb in enumerate(("up", "down", "up")):
        row = dict(
            id=f"a{number}", arm="tuned", user=f"u{number}", seconds=1.0, messages=ask, answer=f"多喝水 {number}"
        )
        votes.append(tmp_path / "ab.jsonl", row)
        votes.append(tmp_path / "ab.jsonl", dict(id=f"a{number}", thumb=thumb))
    votes.main([str(tmp_path / "votes.jsonl"), str(tmp_path / "ab.jsonl"), "--out", str(tmp_path / "made")])
    pairs, report = task.data.read_rows(tmp_path / "made" / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        ("休息一下 0", "I don't know 0"),
        ("I don't know 1", "休息一下 1"),
    ]
    assert pairs[0]["prompt"] == ask and not report["dropped"]
    rows, report = task.data.read_rows(tmp_path / "made" / "kto.jsonl", single=True)
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("多喝水 0", True),
        ("多喝水 1", False),
        ("多喝水 2", True),
    ]
    assert rows[0]["prompt"] == ask and not report["dropped"]


# -- a second opinion


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The folder of a random reward model, as rlhf_ppo/train_reward.py leaves one, on a tiny model."""
    import faults
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from common.files import fingerprint

    folder = tmp_path_factory.mktemp("judge")
    base = faults.tiny_model(folder / "model")
    torch.manual_seed(3)
    judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    judge = get_peft_model(
        judge, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    for name, parameter in judge.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    judge.save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "reward")
    made = dict(model="tiny", fingerprint=fingerprint(Path(base)), quantization="none", sft_mean=0.0, sft_std=1.0)
    (folder / "reward" / "reward.json").write_text(json.dumps(made))
    (folder / "reward" / "run.json").write_text(json.dumps(dict(task="rlhf_ppo", stage="reward")))
    return folder / "reward"


def rows_of(pairs):
    return [dict(prompt=[{"role": "user", "content": p}], chosen=c, rejected=r) for p, c, r in pairs]


def alone(reward, row, side):
    """The score of one side, from transformers and PEFT without any of our code but the system text."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = json.loads((reward / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), reward)
    tokenizer = AutoTokenizer.from_pretrained(reward)
    talk = [{"role": "system", "content": "You are a helpful assistant."}, *row["prompt"]]
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    ids = [*tokenizer(text).input_ids, *tokenizer(row[side]).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0, 0].item()


def test_a_reward_model_says_which_pairs_it_would_have_labelled_otherwise(task, reward):
    rows = rows_of(PAIRS)
    folder, base = task.judge.open_reward(reward)
    scores = task.judge.scores_of(folder, base, rows, 999, batch_size=3)
    assert abs(scores[1][0] - alone(reward, rows[1], "chosen")) < 1e-5
    assert abs(scores[3][1] - alone(reward, rows[3], "rejected")) < 1e-5

    def said(wrong):
        """Labels as the judge has them, but for the pairs `wrong`, whose sides are planted the other way round."""
        made, sides = [], []
        for number, (row, (one, two)) in enumerate(zip(rows, scores, strict=True)):
            swap = (one < two) != (number in wrong)
            made.append(row | dict(chosen=row["rejected"], rejected=row["chosen"]) if swap else row)
            sides.append((two, one) if swap else (one, two))
        assert sum(task.judge.scores_of(folder, base, made, 999), ()) == pytest.approx(sum(sides, ()), abs=1e-5)
        places = [type("Place", (), dict(inside=f"line {number + 1}")) for number in range(len(rows))]
        return "\n".join(task.judge.told(made, places, sides))

    assert said(()) == "reward model prefers the chosen side: 100% of 4 pairs"
    one = said({2})
    assert "75% of 4 pairs\n  line 3: -" in one and "'what is it'" in one and "swapped" not in one
    assert "0% of 4 pairs: are the columns swapped?" in said({0, 1, 2, 3})
    most = max(
        len(task.judge.answer_ids(task.policy.models.load_tokenizer(reward), [row["rejected"]])[0]) for row in rows
    )
    assert task.judge.scores_of(folder, base, rows[:1], most) == [None]  # too long is left out, not cut


def test_only_a_reward_model_of_this_base_is_a_judge(task, reward, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(dict(task="alpaca", stage="", arguments={})))
    with pytest.raises(SystemExit, match="it is a run of alpaca. Give the folder that rlhf_ppo/train_reward.py named"):
        task.judge.open_reward(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(SystemExit, match="it has no reward.json"):
        task.data.main(["--check", str(ROOT / "preference/sample/gold.jsonl"), "--reward_run", str(tmp_path)])
    for name in ("adapter_config.json", "reward.json"):
        (tmp_path / name).write_bytes((reward / name).read_bytes())
    made = json.loads((reward / "reward.json").read_text()) | dict(fingerprint="another")
    (tmp_path / "reward.json").write_text(json.dumps(made))
    with pytest.raises(SystemExit, match="was trained on another model"):
        task.judge.open_reward(tmp_path)
    with pytest.raises(SystemExit):
        task.data.main(["--single", "--reward_run", str(reward)])
    assert "leave out --single" in capsys.readouterr().err


# -- memory, figures


@pytest.mark.parametrize("name, sides", [("dpo", 2), ("kto", 1)])
def test_the_estimate_counts_both_sides_of_a_pair_and_the_logits_of_a_chunk(task, monkeypatch, name, sides):
    seen = []
    monkeypatch.setattr(task.dpo.fit, "estimate", lambda args, flag, work: seen.append((flag, work(10, 3))))
    getattr(task, name).main(["--estimate"])
    assert seen == [("max_length", dict(tokens=sides * 30, logits=12 * task.pairs.CHUNK))]


@pytest.mark.parametrize("name, sides", [("dpo", 2), ("kto", 1)])
def test_auto_and_the_estimate_say_the_same_of_an_80_gb_card(task, monkeypatch, capsys, name, sides):
    """Rows as long as --max_length: then the estimate's upper bound is what --auto counts; and never Liger's loss."""
    import importlib.util

    import torch
    from datasets import Dataset

    script, side = getattr(task, name), [[1] * 1024] * 64
    script.main(["--estimate"])
    said = capsys.readouterr().out.splitlines()[-1].split()  # card, fits, needs, five parts and CUDA, settings
    assert said[:2] == ["80", "yes"] and said[9:12] == ["16-bit,", "no", "checkpointing,"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(task.policy.device, "card_bytes", lambda: 80 * 10**9)
    monkeypatch.setattr(task.policy.device, "varlen_kernel", lambda dtype=None: "flash")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # Liger is installed
    config = SimpleNamespace(
        **{key: script.DEFAULTS[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps")},
        gradient_checkpointing=True, bf16=True, fp16=False, use_cpu=False, world_size=1, use_liger_kernel=False,
    )  # fmt: skip
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    args = script.Args(fused_lora=True)
    args.given = []
    columns = ("input_ids", "rejected_ids" if sides == 2 else "mismatched_ids")
    dataset = Dataset.from_dict(dict.fromkeys(columns, side))
    how = dict(settled=("fused_lora", "use_liger_kernel"), logits=12 * task.pairs.CHUNK)
    task.dpo.fit.tune(config, args, "Qwen/Qwen2.5-7B-Instruct", dataset, **how)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (int(said[12]), 2)
    assert config.per_device_train_batch_size * 2 == rows and not config.gradient_checkpointing
    assert (args.packing, args.fused_lora, args.quantization) == (True, True, "none")
    assert config.use_liger_kernel is False and args.given == []
    assert f"about {float(said[2]):.0f} of 80 GB" in capsys.readouterr().out


def test_an_estimate_from_a_start_counts_its_frozen_copy(task, monkeypatch, tmp_path):
    config = dict(base_model_name_or_path="Qwen/Qwen2.5-7B", r=8, lora_alpha=16, peft_type="LORA")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    seen = []
    monkeypatch.setattr(task.dpo.fit, "estimate", lambda args, flag, work: seen.append((args.lora_r, work(10, 3))))
    task.dpo.main(["--estimate", "--start", str(tmp_path)])
    assert seen[0][0] == 8 and seen[0][1]["adapter"] == 20


def test_the_three_questions_are_drawn_from_runs(task, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    logs = [dict(step=step, accuracy=step / 4, eval_accuracy=0.5, eval_logp_chosen=-step, eval_logp_rejected=-2 * step)
            for step in range(4)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    (run / "run.json").write_text(json.dumps(dict(command="dpo.py --demo", before=dict(words=3), after=dict(words=5))))
    assert task.questions.smooth([1, 0, 1], 2) == [1, 0.5, 0.5]
    task.questions.main(["--both", str(run), "--longer", str(run), str(run), "--out", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 5000
    (run / "run.json").write_text(json.dumps(dict(command="dpo.py --demo")))  # not ended
    for folder in (tmp_path, run):
        with pytest.raises(SystemExit, match="is no finished run"):
            task.questions.main(["--both", str(folder), "--longer", str(folder), "--out", str(tmp_path / "y.png")])


@pytest.mark.parametrize(
    "bits, kernel, packed", [("bfloat16", "flash", True), ("float32", "flash", False), ("bfloat16", None, False)]
)
def test_rows_are_packed_where_the_kernel_is_and_takes_the_numbers(task, monkeypatch, bits, kernel, packed):
    """A demo on a GPU computes in float32, which FlashAttention refuses."""
    import torch

    def varlen_kernel(dtype):
        return kernel if dtype.itemsize == 2 else None

    monkeypatch.setattr(task.policy.device, "varlen_kernel", varlen_kernel)
    monkeypatch.setattr(task.policy.device, "dtype", lambda config: getattr(torch, bits))
    assert bool(task.policy.packs(type("Args", (), dict(packing=True)), None)) is packed
