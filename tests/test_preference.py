"""preference/: each loss against its formula and TRL's number, the pair batch, the reference, the data."""

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
FILES = ("prompt", "sources", "data", "gold", "pairs", "policy", "watch", "dpo", "orpo", "simpo", "kto", "compare")
TEXTS = [  # prompt, chosen, rejected: of different lengths
    ("ask one", "a short one", "something much longer than that, on and on"),
    ("and another question", "yes, of course it is so", "no"),
    ("what is it", "nothing", "all and more"),
    ("why", "because of the rain in spring", "I would rather not say"),
]


@pytest.fixture(scope="module")
def task(modules_of):
    """The folder's modules. They stay in sys.modules while these tests run: some import others inside functions."""
    made, before = modules_of("preference", FILES), {name: sys.modules.get(name) for name in FILES}
    sys.modules.update(vars(made))
    yield made
    for name, module in before.items():
        sys.modules.pop(name)
        if module:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import faults
    import torch
    from transformers import AutoModelForCausalLM

    folder = faults.tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data *= 20  # a random model is near-uniform: nothing could be told apart
    model.save_pretrained(folder)
    del torch
    return folder


def shaken(model, seed=7):
    """LoRA with B drawn at random, the same for each model of a seed: as after some training."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".default." in name and "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


KTO_SEED = 1  # with it z0 is above 0


def test_methods_are_compared_between_snapshots_only(task):
    """Gold over the square root of KL, of all seeds or none, and nothing from where no run was measured."""
    curve = [(1.0, -1.0), (4.0, -0.5)]
    assert task.compare.at_kl(curve, 2.25) == pytest.approx(-0.75)
    assert task.compare.at_kl(curve, 0.9) is None and task.compare.at_kl(curve, 4.1) is None

    def row(method, seed, step, kl, gold):
        return dict(method=method, strength="", seed=seed, step=step, kl=kl, gold=gold)

    rows = [row("dpo", seed, step, kl, gold) for seed in (1, 2) for step, kl, gold in ((1, 0.0, -1.5), (2, 4, -0.5))]
    rows += [row("sft", 1, 1, 1.5, -1), row("sft", 1, 2, 8, -0.1), row("sft", 2, 1, 1.5, -1), row("sft", 2, 2, 4, -0.2)]
    _, (dpo, sft) = task.compare.table(rows)
    assert dpo[3:] == ("-1.00", "-0.79", "-0.50", "-", "-")
    assert sft[3:5] == ("-", sft[4]) and sft[4].startswith("-0.8") and "no difference shown" in sft[5] and sft[6] == "-"


def test_both_sides_of_a_pair_are_counted(task, tiny):
    """The plan's tokens and --auto's memory; KTO's mismatched rows have no backward pass."""
    from common import tokens

    tokenizer, rows = task.policy.models.load_tokenizer(tiny), rows_of(TEXTS)
    made = task.pairs.tokenize(rows, tokenizer, 999, "pairs")
    assert tokens.lengths(made) == [len(row["input_ids"]) + len(row["rejected_ids"]) for row in made]
    rows = [dict(prompt=row["prompt"], completion=row["chosen"], label=True) for row in rows]
    made = task.kto.to_set(rows, tokenizer, 999, "rows", task.prompt.TEMPLATE)
    assert tokens.lengths(made) == [len(row["input_ids"]) for row in made] and "mismatched_ids" in made.column_names


def lora():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])


def base(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny)


def rows_of(texts):
    return [dict(prompt=[{"role": "user", "content": p}], chosen=c, rejected=r) for p, c, r in texts]


def settings(folder, accumulation, **more):
    return dict(
        output_dir=str(folder), use_cpu=True, bf16=False, fp16=False, report_to="none", learning_rate=0.0, max_steps=1,
        per_device_train_batch_size=len(TEXTS) // accumulation, gradient_accumulation_steps=accumulation, save_strategy="no",
        logging_steps=1, disable_tqdm=True, gradient_checkpointing=False,
    ) | more  # fmt: skip


def step_loss(trainer):
    """The loss of one optimizer step: what is added up over its micro-batches."""
    losses, original = [], trainer.training_step
    trainer.training_step = lambda *a, **k: losses.append(original(*a, **k)) or losses[-1]
    trainer.train()
    return sum(losses).item()


def ours(task, tiny, folder, loss, accumulation=1, texts=TEXTS, packed=False, shake=True, model=None, seed=7, **more):
    from functools import partial

    from peft import get_peft_model
    from transformers import TrainingArguments

    tokenizer = task.policy.models.load_tokenizer(tiny)
    model = model or get_peft_model(base(tiny), lora())
    rows, cls = rows_of(texts), task.pairs.PairTrainer
    if loss.func is task.kto.kto_loss:
        rows = [dict(prompt=row["prompt"], completion=row["chosen"], label=bool(i % 2)) for i, row in enumerate(rows)]
        dataset = task.kto.to_set(rows, tokenizer, 999, "rows", task.prompt.TEMPLATE)
        cls, collate = task.kto.trainer_class(), partial(task.kto.collate, tokenizer=tokenizer, packed=packed)
    else:
        dataset = task.pairs.tokenize(rows, tokenizer, 999, "rows")
        collate = task.pairs.collator(tokenizer, packed)
    return cls(
        model=shaken(model, seed) if shake else model,
        args=TrainingArguments(**settings(folder, accumulation, remove_unused_columns=False)),
        train_dataset=dataset, eval_dataset=dataset, data_collator=collate, loss=loss, **more,
    )  # fmt: skip


def theirs(task, tiny, folder, name, accumulation=1, texts=TEXTS, seed=7, **more):
    """TRL's trainer on the same rows, as texts."""
    from datasets import Dataset

    tokenizer, rows = task.policy.models.load_tokenizer(tiny), rows_of(texts)
    prompts = [
        tokenizer.apply_chat_template(task.prompt.conversation(row), add_generation_prompt=True, tokenize=False)
        for row in rows
    ]
    data = dict(prompt=prompts, chosen=[c for _, c, _ in texts], rejected=[r for _, _, r in texts])
    if name == "KTO":
        data = dict(prompt=prompts, completion=data["chosen"], label=[bool(i % 2) for i in range(len(texts))])
    if name in ("DPO", "KTO"):
        import trl as module
    else:
        import importlib

        module = importlib.import_module(f"trl.experimental.{name.lower()}")
    config = getattr(module, f"{name}Config")(**settings(folder, accumulation, max_length=999, **more))
    trainer = getattr(module, f"{name}Trainer")(
        model=base(tiny),
        args=config,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    shaken(trainer.model, seed)
    return trainer


def loss_of(task, name):
    from functools import partial

    return {
        "DPO": partial(task.dpo.dpo_loss, beta=0.3),
        "SimPO": partial(task.simpo.simpo_loss, beta=2.0, gamma=0.7),
        "ORPO": partial(task.orpo.orpo_loss, weight=0.4),
        "KTO": partial(task.kto.kto_loss, beta=0.3, good_weight=1.5, bad_weight=0.5),
    }[name]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_dpo_is_trl_s(task, tiny, tmp_path, accumulation):
    wanted = step_loss(theirs(task, tiny, tmp_path, "DPO", accumulation, beta=0.3))
    found = step_loss(ours(task, tiny, tmp_path, loss_of(task, "DPO"), accumulation))
    assert abs(found - wanted) < 1e-5 and abs(found - math.log(2)) > 0.01


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_simpo_is_trl_s(task, tiny, tmp_path, accumulation):
    how = dict(beta=2.0, simpo_gamma=0.7, loss_type="simpo", cpo_alpha=0.0)
    wanted = step_loss(theirs(task, tiny, tmp_path, "CPO", accumulation, **how))
    found = step_loss(ours(task, tiny, tmp_path, loss_of(task, "SimPO"), accumulation, needs_reference=False))
    assert abs(found - wanted) < 1e-5


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_orpo_is_trl_s_but_for_the_prompt_in_its_first_term(task, tiny, tmp_path, accumulation, monkeypatch):
    """TRL's first term counts prompts and weighs rows by length: taken from its own loss, the rest is ours."""
    trainer, first = theirs(task, tiny, tmp_path, "ORPO", accumulation, beta=0.4), []
    compute = trainer.get_batch_loss_metrics

    def without_nll(*args, **kwargs):
        loss, metrics = compute(*args, **kwargs)
        first.append(metrics["nll_loss"] / accumulation)
        return loss, metrics

    trainer.get_batch_loss_metrics = without_nll
    wanted = step_loss(trainer) - sum(first)
    loss = loss_of(task, "ORPO")
    found = ours(task, tiny, tmp_path, loss, accumulation, needs_reference=False)
    total = step_loss(found)
    batch = found._prepare_inputs(next(iter(ours(task, tiny, tmp_path, loss, 1).get_train_dataloader())))
    nll = (-task.pairs.logprobs(found.model, batch, found.head)[:4] / batch_lengths(batch)[:4]).mean().item()
    assert abs(total - nll - wanted) < 1e-5 and wanted > 0.01


def batch_lengths(batch):
    import torch

    return torch.tensor(batch["lengths"])


def test_orpo_s_odds_are_exact_where_an_answer_is_nearly_certain(task):
    """TRL's rows above are far from it, and 1 - exp(log P) is 0 there."""
    import torch

    policy, lengths = torch.tensor([-3e-9, -2.0]), torch.tensor([3, 2])
    losses, margins = task.orpo.orpo_loss(policy, None, lengths, 0.4)
    wanted = -math.log(1e-9) - (-1 - math.log(1 - math.exp(-1)))
    assert abs(margins.item() - wanted) < 1e-4 and abs(losses.item() - 0.4 * math.log1p(math.exp(-wanted))) < 1e-6


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_kto_is_trl_s_whose_micro_batch_is_the_whole_step(task, tiny, tmp_path, accumulation):
    how = dict(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    wanted = step_loss(theirs(task, tiny, tmp_path, "KTO", 1, seed=KTO_SEED, **how))
    trainer = ours(task, tiny, tmp_path, loss_of(task, "KTO"), accumulation, seed=KTO_SEED)
    assert abs(step_loss(trainer) - wanted) < 1e-5
    assert [log["z0"] for log in trainer.state.log_history if "z0" in log][0] > 0  # it was not estimated as nothing


@pytest.mark.parametrize("name, first", [("DPO", math.log(2)), ("KTO", 0.5)])
def test_the_first_loss_is_known(task, tiny, tmp_path, name, first):
    from functools import partial

    loss = loss_of(task, name)
    loss = partial(loss.func, **loss.keywords | (dict(good_weight=1.0, bad_weight=1.0) if name == "KTO" else {}))
    assert abs(step_loss(ours(task, tiny, tmp_path, loss, shake=False)) - first) < 1e-6


@pytest.mark.parametrize("name", ["DPO", "KTO"])
def test_rows_end_to_end_give_what_padded_rows_give(task, tiny, tmp_path, name):
    losses = [step_loss(ours(task, tiny, tmp_path, loss_of(task, name), 2, packed=packed)) for packed in (False, True)]
    assert abs(losses[0] - losses[1]) < 1e-5


@pytest.mark.parametrize("name", ["DPO", "KTO"])
def test_held_out_rows_are_measured_again_only_when_the_weights_have_moved(task, tiny, tmp_path, name, monkeypatch):
    trainer, calls, real = ours(task, tiny, tmp_path, loss_of(task, name)), [], task.pairs.reference_logprobs
    monkeypatch.setattr(task.pairs, "reference_logprobs", lambda *args: calls.append(1) or real(*args))
    measured, measure = [], trainer.measure
    trainer.measure = lambda *args: measured.append(1) or measure(*args)
    first = trainer.held_out()
    references, batches = len(calls), len(measured)
    assert trainer.held_out() == first and len(measured) == batches > 0
    shaken(trainer.model, seed=8)
    moved = trainer.held_out()
    assert moved["loss"] != first["loss"] and len(measured) == 2 * batches
    assert len(calls) == references > 0  # the reference has not moved
    trainer._references.clear()
    trainer._known = None, {}
    assert trainer.held_out() == moved and len(calls) == 2 * references
    step_loss(trainer)
    assert len(calls) > 2 * references  # rows that are trained on come in other batches: theirs is computed each time


def test_an_incomplete_last_micro_batch_weighs_by_its_rows(task, tiny, tmp_path):
    texts = TEXTS[:3]
    losses = [
        step_loss(ours(task, tiny, tmp_path, loss_of(task, "DPO"), accumulation, texts)) for accumulation in (1, 2)
    ]
    assert abs(losses[0] - losses[1]) < 1e-6


def test_log_probabilities_and_their_gradient_are_those_of_log_softmax(task):
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(5, 8, dtype=torch.float32, requires_grad=True)
    weight, targets, outer = torch.randn(11, 8), torch.tensor([3, 0, 10, 3, 7]), torch.randn(5)
    wanted = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((wanted * outer).sum(), hidden)
    task.pairs.CHUNK, before = 2, task.pairs.CHUNK
    found = task.pairs.LogProbs.apply(hidden, weight, targets)
    (ours,) = torch.autograd.grad((found * outer).sum(), hidden)
    task.pairs.CHUNK = before
    assert torch.allclose(found, wanted, atol=1e-5) and torch.allclose(ours, gradient, atol=1e-5)


def test_a_start_is_the_reference_and_one_adapter_on_the_base_comes_out(task, tiny, tmp_path):
    import torch
    from peft import PeftModel, get_peft_model

    sft = shaken(get_peft_model(base(tiny), lora()))
    sft.save_pretrained(tmp_path / "sft")
    model = task.policy.adapters.attach(base(tiny), tmp_path / "sft", trainable=True)
    model = task.policy.adapters.attach(model, tmp_path / "sft", task.pairs.REFERENCE)
    model.set_adapter("default")
    trainer = ours(task, tiny, tmp_path / "run", loss_of(task, "DPO"), shake=False, model=model)
    trainer.args.learning_rate = 0.05
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        wanted = task.pairs.logprobs(sft.eval(), batch, task.pairs.head_of(sft.get_base_model()))
        alone = base(tiny).eval()
        plain = task.pairs.logprobs(alone, batch, task.pairs.head_of(alone))
    assert abs(step_loss(trainer) - math.log(2)) < 1e-6
    found = task.pairs.reference_logprobs(model, batch, trainer.head)
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, plain, atol=1e-2)
    with torch.no_grad():
        assert not torch.allclose(task.pairs.logprobs(model, batch, trainer.head), wanted, atol=1e-3)  # it was trained
    task.policy.drop_reference(model)
    model.save_pretrained(tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir() if each.is_dir()) == []
    again = PeftModel.from_pretrained(base(tiny), tmp_path / "out").eval()
    with torch.no_grad(), again.disable_adapter():
        assert torch.equal(task.pairs.logprobs(again, batch, task.pairs.head_of(again.get_base_model())), plain)


# -- data


def test_the_reader_of_pairs_and_the_gold_reward_are_rlhf_ppo_s():
    for name in ("sources.py", "gold.py", "sample/gold.jsonl"):
        assert (ROOT / "preference" / name).read_bytes() == (ROOT / "rlhf_ppo" / name).read_bytes(), name


def test_thumbs_of_any_spelling_are_read(task, tmp_path):
    good, bad = [True, 1, "1", "up", "👍", "Good", 1.0], [False, 0, -1, "down", "👎", "bad", "-1"]
    rows = [dict(prompt=f"q{i}", completion="x", label=label) for i, label in enumerate([*good, *bad])]
    rows += [
        dict(messages=[dict(role="user", content="hm")], answer="y", thumb="up"),
        dict(prompt="q", answer="y", label="maybe"),
    ]
    rows += [dict(prompt="q", completion="", label=1), dict(prompt="q", completion="x")]
    file = tmp_path / "thumbs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, report = task.data.read_rows(file, single=True)
    assert [row["label"] for row in found] == [True] * 7 + [False] * 7 + [True]
    assert sum(report["dropped"].values()) == 3 and "line 16, column label: expected true/false" in "".join(
        report["problems"]
    )
    with pytest.raises(SystemExit, match="kto.py trains on it"):
        task.data.read_rows(file)


def test_pairs_are_two_rows_each_for_kto_and_stay_on_one_side(task, tmp_path):
    args = type(
        "Args",
        (),
        dict(
            data=str(ROOT / "preference/sample/gold.jsonl"), max_pairs=999, eval_ratio=0.2, split_seed=1, eval_rows=99
        ),
    )
    train, held = task.data.load_splits(args, single=True)
    assert len(train) + len(held) == 240 and sum(row["label"] for row in train) * 2 == len(train)
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in held}
    made = task.kto.mismatched(train)
    answers = {}
    for row in train:
        answers.setdefault(str(row["prompt"]), set()).add(row["completion"])
    assert all(row["mismatched"] not in answers[str(row["prompt"])] for row in made)


def test_what_is_wrong_with_pairs_is_said_with_its_line(task, tmp_path):
    rows = [("a?", "x", "y", 1, 2), ("a?", "y", "x", 2, 2), ("b?", "Yes.", "yes", 3, 1), ("b?", "Same", "Same", 3, 1)]
    file = tmp_path / "pairs.jsonl"
    names = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    found, report = task.data.read_rows(file)
    said = "\n".join(report["notes"])
    assert len(found) == 3 and report["dropped"]["equal sides"] == 1
    assert (
        "1 pairs contradict an earlier one: the same prompt, the sides swapped (the first: line 2 and line 1)" in said
    )
    assert "differ in case, spaces or punctuation only (the first: line 3)" in said
    assert "1 pairs whose own scores say the opposite" in said and "1 pairs are ties by their own scores" in said
    train, held = task.data.split([*found, found[0] | {"prompt": [dict(role="user", content="A?")]}], 0.5, 1)
    assert len({id(side) for side in (train, held) for row in side if row["prompt"][0]["content"].lower() == "a?"}) == 1
