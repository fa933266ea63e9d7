"""lora_variants/: what each variant is, that what is saved is what was trained, statistics with known answers, Flora's closed forms."""

import copy
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "lora_variants"
FILES = ("data", "prompt", "paired", "flora", "variants", "portable", "trial", "reach", "compare", "train")
ON_CPU = ["lora", "rslora", "dora", "pissa", "olora", "eva", "loraplus", "lorafa", "muon"]  # LoftQ's base is in 4 bits
NIGHTLY = pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="`make nightly`")


@pytest.fixture(scope="module")
def task():
    """The folder's modules; they stay in sys.modules while these tests run, since some import others inside functions."""
    before = {name: sys.modules.pop(name, None) for name in FILES}
    sys.path.insert(0, str(TASK))
    import importlib

    yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    sys.path.remove(str(TASK))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama of 2 layers that reads bytes, with weights so large that its logits are far from flat."""
    import torch
    from safetensors.torch import load_file, save_file

    sys.path.insert(0, str(ROOT / "tools"))
    import faults

    folder = faults.tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    weights = {name: 0.15 * torch.randn_like(each) if each.ndim == 2 else each for name, each in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(tiny):
    import torch

    from common import models

    return models.load_base(tiny, "hf", None, torch.float32)


@pytest.fixture(scope="module")
def rows(task, tiny):
    from common import models

    return task.trial.encoded(models.load_tokenizer(tiny), task.data.catalogue()[:64])


def options(out):
    return SimpleNamespace(out=str(out), lora_alpha=16, flora_rank=8)


def job(task, name, **more):
    lr = 1e-3 if name == "loraplus" else 1e-2
    made = task.compare.job("variants", name, lr, 5, rank=2, size=4) | dict(steps=6, measure=True)
    return made | more


@pytest.fixture(scope="module")
def trained(task, tiny, base, rows, tmp_path_factory):
    """Each variant, trained for six steps and measured: name -> its numbers."""
    out = tmp_path_factory.mktemp("trials")
    return {
        name: task.trial.run(job(task, name), options(out), base, tiny, rows[:48], rows[48:], "cpu") for name in ON_CPU
    }


# -- data


def test_the_shipped_rows_are_those_that_the_code_makes(task):
    lines = (TASK / "sample" / "catalogue.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == task.data.catalogue()
    assert len({row["question"] for row in task.data.catalogue()}) == len(lines) == 1536


def test_facts_that_are_held_out_are_asked_for_in_training_in_another_way(task):
    args = task.data.DataArgs()
    train, held = task.data.split(task.data.catalogue(), args.eval_ratio, args.split_seed)
    assert len(held) == 154 and not {row["question"] for row in train} & {row["question"] for row in held}
    assert {row["answer"] for row in held} <= {row["answer"] for row in train}


def test_alpacas_columns_are_read_and_an_input_stands_behind_its_instruction(task, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"question": "Why?", "answer": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, report = task.data.read_rows(file)
    assert kept == [{"question": "Add.\n\n1 and 2", "answer": "3"}] and report["dropped"] == {"empty": 1}


# -- statistics


@pytest.mark.parametrize("t, df, p", [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (2.228, 10, 0.05), (1.962, 1000, 0.05),
                                      (0, 3, 1.0), (2.0, 1.5, 0.2289)])  # fmt: skip
def test_students_t_is_that_of_the_tables(task, t, df, p):
    if df == 1.5:  # no table has it: between 1 and 2
        assert task.paired.p_of(t, 2) < task.paired.p_of(t, df) < task.paired.p_of(t, 1)
    else:
        assert task.paired.p_of(t, df) == pytest.approx(p, abs=2e-4)
        assert t == 0 or task.paired.quantile(df) == pytest.approx(t, rel=2e-3)


def test_holm_on_four_values(task):
    assert task.paired.holm(dict(a=0.01, b=0.04, c=0.03, d=0.005)) == pytest.approx(
        dict(d=0.02, a=0.03, c=0.06, b=0.06)
    )


def test_the_interval_of_pairs_holds_the_truth_19_times_in_20_and_seeds_count(task):
    """Rows and seeds that both shift the difference: an interval from the rows alone would be right far more rarely."""
    draw, hit, narrow = random.Random(0), 0, 0
    for _ in range(100):
        seeds, rows = [draw.gauss(0, 0.3) for _ in range(3)], [draw.gauss(0, 0.5) for _ in range(40)]
        values = [[0.1 + seed + row + draw.gauss(0, 0.2) for row in rows] for seed in seeds]
        found, alone = task.paired.summary(values), task.paired.summary(values[:1])
        hit += abs(found["mean"] - 0.1) <= found["half"]
        narrow += abs(alone["mean"] - 0.1) <= alone["half"]
    assert hit >= 91 and narrow < 70
    assert task.paired.summary([[0.0, 0.0]] * 3) == dict(mean=0.0, half=0.0, p=1.0)


def fake(task, name, seed, losses):
    return task.compare.job("variants", name, 1e-3, seed, rank=16, size=16) | dict(
        rows=losses, counts=[1] * len(losses), loss=sum(losses) / len(losses), seconds=1.0, init_seconds=0.0, peak_gb=None, mb=1.0,
        train=[1.0, 0.5],
    )  # fmt: skip


def test_the_table_says_no_difference_where_none_is_shown_and_one_where_it_is(task):
    draw, made = random.Random(0), []
    level = [draw.gauss(2, 0.5) for _ in range(50)]
    for seed in range(3):
        made.append(fake(task, "lora", seed, [each + draw.gauss(0, 0.1) for each in level]))
        made.append(fake(task, "dora", seed, [each + draw.gauss(0, 0.1) for each in level]))
        made.append(fake(task, "muon", seed, [each - 0.3 + draw.gauss(0, 0.1) for each in level]))
    _, lines = task.compare.table(made, "variants", lambda _: ("lora", 16, "all", 16))
    told = {line[0]: line[4] for line in lines}
    assert told["lora"] == "-" and told["dora"].endswith("no difference shown")
    assert told["muon"].startswith("-0.29") and "no difference" not in told["muon"]


def test_a_grid_goes_on_where_its_best_is_at_the_edge(task):
    asked = []

    def run(job):
        asked.append(job["lr"])
        return dict(loss=abs(math.log(job["lr"] / 1e-2)))

    args = SimpleNamespace(seed=1, most=2)
    best = task.compare.choose(args, run, "lora", [3e-4, 1e-3, 3e-3])
    assert asked[:3] == [3e-4, 1e-3, 3e-3] and len(asked) == 5 and best == pytest.approx(9.5e-3)
    asked.clear()
    assert task.compare.choose(args, run, "lora", [3e-3, 1e-2, 3e-2]) == 1e-2 and len(asked) == 3


# -- Flora


def test_a_gradient_comes_back_on_average_and_as_inexactly_as_the_formula_says(task):
    import torch

    torch.manual_seed(0)
    gradient, rank, count = torch.randn(6, 40), 8, 400
    seen = []
    for seed in range(count):
        a = task.flora.projection(seed, rank, 40, "cpu")
        seen.append(gradient @ a.T @ a)
    seen, square = torch.stack(seen), gradient.square().sum()
    one = (seen - gradient).square().sum((1, 2)).mean() / square
    mean = (seen.mean(0) - gradient).square().sum() / square
    assert float(one) == pytest.approx(41 / 8, rel=0.1) and float(mean) == pytest.approx(41 / 8 / count, rel=0.3)


def test_flora_adds_micro_batches_moves_its_momentum_and_stores_no_projection(task):
    import torch

    torch.manual_seed(0)
    weight, vector = torch.nn.Parameter(torch.randn(6, 40)), torch.nn.Parameter(torch.ones(6))
    optimizer = task.flora.Flora([weight, vector], lr=0.1, rank=8, beta=0.5, period=2, seed=3)
    first, second = torch.randn(6, 40), torch.randn(6, 40)
    for part in (first, second):
        (weight * part).sum().backward()
        assert weight.grad is None
    a = [task.flora.projection(3 + 1_000_003 * period, 8, 40, "cpu") for period in (0, 1)]
    torch.testing.assert_close(optimizer.state[weight]["sum"], (first + second) @ a[0].T)
    optimizer.step()
    momentum = 0.5 * (first + second) @ a[0].T
    torch.testing.assert_close(optimizer.state[weight]["momentum"], momentum)
    for made in (first, second):  # the second of these steps begins a new period
        (weight * made).sum().backward()
        optimizer.step()
    momentum = 0.5 * momentum + 0.5 * first @ a[0].T
    torch.testing.assert_close(
        optimizer.state[weight]["momentum"], 0.5 * momentum @ a[0] @ a[1].T + 0.5 * second @ a[1].T
    )
    held = sum(each.numel() for each in optimizer.state[weight].values() if isinstance(each, torch.Tensor))
    assert held == 6 * 8 + 6 + 40


def test_flora_goes_on_from_its_state_to_the_bit_and_learns(task):
    import torch

    torch.manual_seed(0)
    x, goal = torch.randn(64, 12), torch.randn(12, 5)

    def model():
        torch.manual_seed(1)
        return torch.nn.Linear(12, 5)

    def train(layer, optimizer, steps):
        for _ in range(steps):
            (layer(x) - x @ goal).square().mean().backward()
            optimizer.step()
        return float((layer(x) - x @ goal).detach().square().mean())

    whole, half = model(), model()
    start = float((whole(x) - x @ goal).detach().square().mean())
    flora = task.flora.Flora(whole.parameters(), lr=0.05, rank=4, period=20)
    end = train(whole, flora, 120)
    one = task.flora.Flora(half.parameters(), lr=0.05, rank=4, period=20)
    train(half, one, 17)
    other = model()
    other.load_state_dict(half.state_dict())
    two = task.flora.Flora(other.parameters(), lr=0.05, rank=4, period=20)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    train(other, two, 103)
    assert torch.equal(other.weight, whole.weight)
    assert end < 0.5 * start


def test_a_model_is_let_go_with_its_flora(task):
    """Or a second run in the same process finds the first one's weights in the card's memory."""
    import gc
    import weakref

    import torch

    layer = torch.nn.Linear(4, 3)
    flora = task.flora.Flora(layer.parameters(), rank=2)
    layer(torch.ones(4)).sum().backward()
    assert layer.weight.grad is None and "sum" in flora.state[layer.weight]
    flora.step()
    left = weakref.ref(layer.weight)
    del layer, flora
    gc.collect()
    assert left() is None


# -- the variants


@pytest.mark.parametrize("flags, told", [
    (dict(full="adamw", given=["variant"]), "give one of them"),
    (dict(variant="pissa", quantization="4bit"), "--variant pissa changes the base's weights"),
    (dict(full="flora", quantization="4bit"), "--full flora changes"),
    (dict(variant="loftq", quantization="none"), "--quantization 4bit"),
    (dict(variant="dora", fused_lora=True, given=["fused_lora"]), "its layers are not W x"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(task, flags, told):
    args = SimpleNamespace(
        **dict(variant="lora", full=None, quantization="auto", fused_lora=False, auto=False, given=[]) | flags
    )
    with pytest.raises(SystemExit, match=told):
        task.variants.check(args)


def test_fused_layers_switch_themselves_off(task, capsys):
    args = SimpleNamespace(variant="lorafa", full=None, quantization="auto", fused_lora=False, auto=True, given=[])
    task.variants.check(args)
    assert (
        args.fused_lora is False
        and "fused_lora" in args.given
        and "fused LoRA is off: lorafa" in capsys.readouterr().out
    )


def built(task, base, tiny, name, folder, **more):
    from peft import LoraConfig, get_peft_model

    def build(**fields):
        from transformers import set_seed

        set_seed(1)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], **fields)
        return get_peft_model(copy.deepcopy(base), config)

    args = SimpleNamespace(learning_rate=1e-3, lora_r=2, lora_alpha=4, loraplus_ratio=16.0)
    return task.variants.make(name, build, args, tiny, init=folder / "init", **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_base_that_was_changed_is_changed_again_to_the_bit_and_a_start_is_the_base(task, base, tiny, name, tmp_path):
    import torch

    model, _ = built(task, base, tiny, name, tmp_path)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(model(ids).logits, base(ids).logits, atol=2e-5, rtol=1e-4)
    assert not torch.equal(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight,
                           base.model.layers[0].self_attn.q_proj.weight)  # fmt: skip
    again, _ = built(task, base, tiny, name, tmp_path, fresh=False)
    for (key, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other) and one.requires_grad == other.requires_grad, key
    assert model.peft_config["default"].init_lora_weights == again.peft_config["default"].init_lora_weights


@pytest.mark.slow
def test_groups_and_scales_are_those_of_the_papers(task, base, tiny, tmp_path):
    from common.speed import lora

    _, plus = built(task, base, tiny, "loraplus", tmp_path)
    rates = sorted((group["lr"], len(group["params"])) for group in plus.param_groups if group["params"])
    assert rates == [(1e-3, 4), (pytest.approx(1.6e-2), 4)]
    model, _ = built(task, base, tiny, "lorafa", tmp_path)
    assert {key.split(".")[-3] for key, each in model.named_parameters() if each.requires_grad} == {"lora_B"}
    model, _ = built(task, base, tiny, "rslora", tmp_path)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(4 / 2**0.5)
    assert lora.fuse(model) == 4 and lora.fuse(built(task, base, tiny, "dora", tmp_path)[0]) == 0


@pytest.mark.slow
def test_a_saved_file_read_as_w_plus_sba_is_the_trained_model_and_an_unconverted_one_is_not(task, trained):
    for name, found in trained.items():
        print(
            f"{name}: max logit error {found['error']:.1e}; unconverted {found.get('unconverted')}, merged {found.get('merged')}"
        )
        assert found["train"][-1] < found["train"][0] and found["loss"] == pytest.approx(
            sum(found["rows"]) / sum(found["counts"]), rel=1e-4
        )
        if name == "dora":
            assert found["error"] > 1e-2 and found["merged"] < 1e-5
        else:
            assert found["error"] < 1e-5, name
    assert all(trained[name]["unconverted"] > 1e-2 for name in ("pissa", "olora"))
    assert {task.variants.PORTABLE[name] for name in ("pissa", "olora")} == {"converted, rank 2r"}
    assert trained["pissa"]["mb"] > 1.5 * trained["lora"]["mb"]
    assert trained["lorafa"]["trained"] < trained["lora"]["trained"] < trained["dora"]["trained"]


@pytest.mark.slow
def test_a_trial_is_the_same_again_and_its_rows_are_the_trainers(task, tiny, base, rows, trained, tmp_path):
    again = task.trial.run(job(task, "muon"), options(tmp_path), base, tiny, rows[:48], rows[48:], "cpu")
    assert again["rows"] == trained["muon"]["rows"] and again["train"] == trained["muon"]["train"]
    for name in ("adamw", "flora"):
        found = task.trial.run(job(task, name), options(tmp_path), base, tiny, rows[:48], rows[48:], "cpu")
        assert found["train"][-1] < found["train"][0] and "mb" not in found
    assert task.trial.order(10, 3, 4, 7) == task.trial.order(10, 3, 4, 7) != task.trial.order(10, 3, 4, 8)


# -- reach


def test_the_best_rank_r_update_holds_what_eckart_and_young_say_and_a_random_one_what_chance_says(task):
    import torch

    torch.manual_seed(0)
    full = {"a": torch.randn(30, 4) @ torch.randn(4, 50) + 0.3 * torch.randn(30, 50)}
    u, s, v = torch.linalg.svd(full["a"], full_matrices=False)
    cut = {"a": (u[:, :3] * s[:3]) @ v[:3]}
    best = task.reach.best_shares(full, [3, 30])
    assert best["30"] == pytest.approx(1) and task.reach.overlap(full, cut, 3)["held"] == pytest.approx(
        best["3"], rel=1e-4
    )
    assert task.reach.overlap(full, cut, 3)["cosine"] == pytest.approx(best["3"] ** 0.5, rel=1e-4)
    other = [task.reach.overlap(full, {"a": torch.randn(30, 3) @ torch.randn(3, 50)}, 3) for _ in range(50)]
    assert (
        sum(each["held"] for each in other) / 50
        == pytest.approx(9 / 1500, rel=0.6)
        == pytest.approx(other[0]["chance"], rel=0.6)
    )


# -- as a user does it

TINY = ["--demo", "--max_steps", 3, "--save_steps", 1, "--eval_steps", 1, "--show_answers", 1, "--max_new_tokens", 3]
TINY += ["--max_length", 4000, "--lora_r", 2, "--eval_rows", 4, "--per_device_train_batch_size", 2]


@pytest.mark.slow
def test_a_converted_run_is_asked_measured_and_served_from_the_folder_alone(copied, script, tiny, tmp_path):
    folder = copied("lora_variants")
    run, few = tmp_path / "run", ["--max_new_tokens", 3]
    parts = [["train", *TINY, "--variant", "pissa", "--model", tiny, "--output_dir", run], ["portable", run],
             ["infer", "--adapter", run, "--compare", *few], ["evaluate", "--adapter", run, "--limit", 4, *few],
             ["portable", run / "checkpoint-3"]]  # fmt: skip
    (folder / "all.py").write_text(f"import importlib\nfor name, *argv in {[list(map(str, each)) for each in parts]}:\n"
                                   "    importlib.import_module(name).main(argv)\n")  # fmt: skip
    done = script(folder / "all.py", check=False)
    assert done.returncode == 1 and done.stderr.count("not portable: merge it first") == 1, done.stdout + done.stderr
    assert "portable: W + s B A on the public base is this model" in done.stdout
    assert "-- base" in done.stdout and "-- tuned" in done.stdout
    serving = json.loads((run / "serving.json").read_text("utf-8"))
    assert (serving["kind"], serving["r"], serving["scaling"], serving["init"]) == ("plain", 4, 8.0, True)
    assert json.loads((run / "run.json").read_text("utf-8"))["arguments"]["lora_r"] == 4
    assert (run / "evaluation_results" / "report.html").is_file()


@pytest.mark.slow
def test_a_run_of_every_weight_is_asked_and_measured_beside_its_base(copied, script, tiny, tmp_path):
    folder, run, few = copied("lora_variants"), tmp_path / "run", ["--max_new_tokens", 3]
    parts = [["train", *TINY, "--full", "flora", "--learning_rate", 0.03, "--model", tiny, "--output_dir", run],
             ["infer", "--adapter", run, "--compare", *few], ["evaluate", "--adapter", run, "--limit", 4, *few]]  # fmt: skip
    (folder / "all.py").write_text(f"import importlib\nfor name, *argv in {[list(map(str, each)) for each in parts]}:\n"
                                   "    importlib.import_module(name).main(argv)\n"
                                   "import torch, whole\nfrom types import SimpleNamespace\nfrom transformers import AutoModelForCausalLM\n"
                                   f"run = whole.open_run({str(run)!r})\n"
                                   "model, _ = whole.load_run(run, SimpleNamespace(backend='hf'))\n"
                                   "ids = torch.arange(8)[None]\nsaid = lambda one: one(input_ids=ids).logits\n"
                                   "want = {name: said(AutoModelForCausalLM.from_pretrained(path, dtype=model.dtype).eval()) for name, path in\n"
                                   "        dict(base=run.base, tuned=run.adapter / 'model').items()}\n"
                                   "with model.disable_adapter():\n    off = said(model)\n"
                                   "print('apart', float((off - want['base']).abs().max()), float((said(model) - want['tuned']).abs().max()),\n"
                                   "      float((off - want['tuned']).abs().max()) > 1e-3)\n")  # fmt: skip
    done = script(folder / "all.py")
    assert "apart 0.0 0.0 True" in done.stdout, done.stdout
    assert "-- base" in done.stdout and "-- tuned" in done.stdout
    measured = json.loads((run / "evaluation_results" / "metrics.json").read_text("utf-8"))
    assert measured["base"] != measured["tuned"]
    damaged = run / "model" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    again = script(folder / "infer.py", "--adapter", run, check=False)
    assert again.returncode == 1 and "Copy the file again" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.slow
@NIGHTLY
@pytest.mark.parametrize("full", ["adamw", "flora"])
def test_full_fine_tuning_goes_on_to_the_bit(full, copied, script, tiny, tmp_path):
    folder = copied("lora_variants")
    flags = [*TINY, "--full", full, "--model", tiny]
    script(folder / "train.py", *flags, "--output_dir", tmp_path / "whole")
    stopped = script(folder / "train.py", *flags, "--output_dir", tmp_path / "cut", "--stop_after", 1, check=False)
    assert stopped.returncode == 143, stopped.stderr
    assert "goes on from checkpoint-1" in script(folder / "train.py", *flags, "--output_dir", tmp_path / "cut").stdout
    name = "model/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert json.loads((tmp_path / "cut" / "run.json").read_text("utf-8"))["status"] == "finished"
    beside = ("prompt_template.txt", "heldout.jsonl", "model/tokenizer.json")  # what deploy/ asks of a run
    assert all((tmp_path / "cut" / name).is_file() for name in beside)


@pytest.mark.slow
def test_killed_runs_of_pissa_and_loraplus_end_as_if_nothing_had_happened():
    names = ON_CPU[1:] if os.environ.get("TEST_NIGHTLY") else ["pissa", "loraplus"]
    points = "8" if os.environ.get("TEST_NIGHTLY") else "1"
    command = [sys.executable, str(ROOT / "tools" / "faults.py"), "--only", *names, "--points", points]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{int(points) * len(names)} kills" in done.stdout, done.stdout + done.stderr
    assert '"went_on": 0' not in done.stdout  # a kill before the first checkpoint proves nothing


@pytest.mark.slow
def test_the_comparison_goes_on_where_it_was_cut_off(task, tiny, tmp_path, capsys):
    flags = [
        "--model",
        tiny,
        "--steps",
        2,
        "--size",
        4,
        "--rank",
        2,
        "--eval_rows",
        8,
        "--grid",
        "1e-3",
        "1e-2",
        "--most",
        0,
    ]
    flags += ["--variants", "lora", "olora", "--out", tmp_path / "out"]

    def compare(*more):
        task.compare.main([*map(str, [*flags, *more])])
        return (tmp_path / "out" / "compare.jsonl").read_text("utf-8").splitlines(), capsys.readouterr().out

    lines, _ = compare("--only", "variants", "--seeds", 1)
    assert [json.loads(line)["part"] for line in lines] == ["lr"] * 4 + ["variants"] * 2
    parts = (
        ["variants", "full", "ranks", "targets", "batch", "reach"]
        if os.environ.get("TEST_NIGHTLY")
        else ["variants", "reach"]
    )
    after, said = compare("--only", *parts, "--seeds", 2, "--ranks", 1)
    assert after[:6] == lines and "minus lora" in said and "of the full update, held" in said
    keys = [task.compare.key(json.loads(line)) for line in after]  # by which a finished run is known again
    assert len(set(keys)) == len(keys) and all(isinstance(key[-1], int) for key in keys)
    assert [json.loads(line)["seed"] for line in after if json.loads(line)["part"] == "variants"] == [
        3407,
        3407,
        3408,
        3408,
    ]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 20_000
    again, said = compare("--seeds", 3, "--only", "variants", "--seconds", 1)
    assert "the same command goes on" in said or len(again) > len(after)


@pytest.mark.slow
@NIGHTLY
def test_the_bench_measures_all_arms_that_a_cpu_has(tiny, script, tmp_path):
    flags = [
        "--model",
        tiny,
        "--steps",
        1,
        "--rows",
        2,
        "--length",
        16,
        "--flora_rank",
        4,
        "--out",
        tmp_path / "speed.jsonl",
    ]
    script(ROOT / "bench" / "lora_variants_speed.py", *flags)
    made = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    arms = [(each["arm"], each["fused"]) for each in made]
    assert len(arms) == len(set(arms)) == 8 + 1 + 2 and ("lora", True) in arms
    assert all(each["tokens_per_second"] > 0 for each in made)
