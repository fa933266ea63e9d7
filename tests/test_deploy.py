"""deploy/: the serving contract, export and gate, on real adapters: loaded by llama.cpp, transformers and PEFT, on a CPU."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import contract

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "found",
    "merged",
    "gguf_file",
    "llama",
    "quantise",
    "modelfile",
    "scores",
    "page",
    "four_bit",
    "mmproj",
    "export",
    "gate",
)
TEMPLATE = "你是一个专业的医疗助手。\n\n### 问题：\n{question}\n\n### 回答：\n"
QUESTIONS = [f"{what} {how}?" for what in ("Is tea good for", "What helps against", "How long lasts")
             for how in ("a cold", "头痛", "天气", "a broken arm")]  # fmt: skip


@pytest.fixture(scope="module")
def deploy(modules_of):
    pytest.importorskip("xllamacpp")
    found = modules_of("deploy", NAMES)
    sys.modules.update(vars(found))  # main imports some of them late; no other folder has these names
    yield found
    for name in NAMES:
        sys.modules.pop(name, None)


NIGHTLY = pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains and exports SmolLM2")
SHAPE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
WORDS = 2048  # of the small tokenizer


@pytest.fixture(scope="module")
def tokenizer(demo_model, tmp_path_factory):
    """SmolLM2's tokenizer, its first words only: what is written, loaded and compared is as large as the vocabulary."""
    from common.models import load_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    load_tokenizer(demo_model).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = content["model"]
    model["vocab"] = known = {word: number for word, number in model["vocab"].items() if number < WORDS}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= known.keys()]
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def smollm2_tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def make_base(folder, tokenizer, seed=0, **shape):
    """A random Llama whose attention and logits are far from flat, so that every weight matters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = SHAPE | shape
    tokens = dict(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0)
    config = LlamaConfig(**dict(initializer_range=0.25) | tokens | shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_run(folder, base, tokenizer, task="medical", texts=None, scale=0.2, seed=1, **lora):
    """A finished run with a random adapter, as a recipe leaves it, and its held-out rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **dict(r=4, lora_alpha=4) | lora)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data + scale * torch.randn_like(parameter) / parameter.shape[0] ** 0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, text in (texts or {"prompt_template": TEMPLATE}).items():
        (folder / f"{name}.txt").write_text(text, "utf-8")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    record = {"task": task, "status": "finished", "finished": time.time(), "arguments": {"max_length": 256}}
    (folder / "run.json").write_text(json.dumps(record))
    rows = []
    for question in QUESTIONS:
        prompt = tokenizer(TEMPLATE.replace("{question}", question), add_special_tokens=False).input_ids
        answer = tokenizer(f"{question} Rest, drink water, and see a doctor.", add_special_tokens=False).input_ids
        rows.append(json.dumps({"input_ids": [*prompt, *answer, tokenizer.eos_token_id], "answer": len(prompt)}))
    (folder / "heldout.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"), tokenizer)


@pytest.fixture(scope="module")
def made(base, tokenizer, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("medical") / "run", base, tokenizer)


@pytest.fixture
def run(made, tmp_path):
    """A run of its own for each test."""
    return Path(shutil.copytree(made, tmp_path / "outputs" / "medical" / "run"))


def call(main, *argv):
    """The exit code, or the message, of a script's main."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    return end.value.code


# -- the serving contract


def folder_texts(modules_of, task):
    prompt = modules_of(task, ("prompt", "pictures") if task == "vl_insurance" else ("prompt",)).prompt
    return prompt, dict(getattr(prompt, "TEMPLATE", {})) if task in (
        "alpaca",
        "medical",
        "domain_mix",
        "lora_variants",
        "r1_grpo",
    ) else {}


def own_ids(task, prompt, texts, tokenizer, probe):
    """What a recipe's own prompt.py makes of a conversation; single-turn ones take the last question."""
    from common.tokens import ids_of

    said = [turn for turn in probe if turn["role"] != "system" or turn["content"]]
    last = said[-1]["content"]
    if task == "alpaca":
        return prompt.prompt_ids(tokenizer, [{"instruction": last, "input": ""}], texts)[0]
    if task == "domain_mix":
        return ids_of(tokenizer, [prompt.chatml([*prompt.opening(texts["system_prompt"]), *said])])[0]
    if task in ("rlhf_ppo", "preference"):
        return prompt.prompt_ids(tokenizer, [{"prompt": said}])[0]
    if task == "s1_scaling":
        return prompt.prompt_ids(tokenizer, [{"question": last}])[0]
    return prompt.prompt_ids(tokenizer, [{"question": last}], texts)[0]


RECIPES = ["alpaca", "alpaca chat", "medical", "domain_mix", "s1_scaling", "r1_grpo", "rlhf_ppo", "preference"]
RECIPES += ["lora_variants", "continual"]


@pytest.fixture(scope="module")
def plain_gguf(deploy, made, tmp_path_factory):
    """A GGUF with SmolLM2's tokenizer, for llama.cpp's server; its template is given anew."""
    run = deploy.found.open_run(made)
    serving, template = deploy.found.contract(run)
    file = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    adapter = deploy.merged.Adapter(run.adapter, run.base)
    deploy.gguf_file.write_model(adapter, run.adapter, file, "f16", serving, template, "plain")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_six_probes_have_the_ids_of_prompt_py_in_transformers_llama_cpp_and_ollama(
    recipe, deploy, modules_of, tokenizer, plain_gguf
):
    task = recipe.split()[0]
    prompt, texts = folder_texts(modules_of, task)
    texts = {} if "chat" in recipe else texts
    template, system, turns = contract.serving_template(task, texts, tokenizer.chat_template)
    expected = [own_ids(task, prompt, texts, tokenizer, probe) for probe in contract.PROBES]
    assert contract.probe_ids(tokenizer, template) == expected
    serving = dict(task=task, system=system, turns=turns, stop=["<|im_end|>"], max_length=256, temperature=0)
    modelfile = deploy.modelfile.parse(deploy.modelfile.write("./x.gguf", template, serving))
    for probe, ids in zip(contract.PROBES, expected, strict=True):
        assert tokenizer(deploy.modelfile.render(modelfile, probe), add_special_tokens=False).input_ids == ids
    with deploy.llama.server(plain_gguf, 512, 1, template=template) as ask:
        assert [deploy.llama.prompt_ids(ask, probe) for probe in contract.PROBES] == expected


def test_an_alpaca_question_with_an_input_takes_the_long_template(modules_of, tokenizer):
    prompt, texts = folder_texts(modules_of, "alpaca")
    template, _, _ = contract.serving_template("alpaca", texts, None)
    asked = [{"role": "user", "content": "Add.\n\n### Input:\n1 and 2"}]
    ids = tokenizer.apply_chat_template(asked, chat_template=template, add_generation_prompt=True, return_dict=False)
    assert ids == prompt.prompt_ids(tokenizer, [{"instruction": "Add.", "input": "1 and 2"}], texts)[0]


def test_r1_runs_that_saved_no_system_text_had_this_one(modules_of):
    assert contract.R1 == modules_of("r1_grpo", ("prompt",)).prompt.SYSTEM


@pytest.mark.parametrize("task, names", [("s1_scaling", ("prompt",)), ("rlhf_ppo", ("prompt",)), ("alpaca", ("prompt",)),
                                         ("vl_insurance", ("pictures", "prompt"))])  # fmt: skip
def test_the_system_text_of_recipes_that_save_none(modules_of, task, names):
    assert modules_of(task, names).prompt.SYSTEM == contract.PLAIN


def test_a_text_with_quotes_and_braces_survives_the_modelfile(deploy, tokenizer):
    texts = {"prompt_template": 'Say """it""" {{ now }}\n{question}\n\n"""\n'}
    template, system, turns = contract.serving_template("medical", texts, None)
    serving = dict(task="medical", system=system, turns=turns, stop=["<|im_end|>"], max_length=256, temperature=0)
    parsed = deploy.modelfile.parse(deploy.modelfile.write("./x", template, serving))
    assert deploy.modelfile.differences(parsed, tokenizer, template) == []
    assert deploy.modelfile.render(parsed, [{"role": "user", "content": "a"}]) == 'Say """it""" {{ now }}\na\n\n"""\n'


@pytest.mark.parametrize(
    "fault, says",
    [(("FROM ./x", "FROM ./y"), "no such file"), (("PARAMETER stop", "PARAMETER top_k"), "no PARAMETER stop"),
     (('"""\nPARAMETER', "\nPARAMETER"), "never closed"), (("FROM", "FORM"), "no instruction"),
     (("PARAMETER num_ctx", 'SYSTEM """Hi"""\nPARAMETER num_ctx'), "trained without")],
)  # fmt: skip
def test_the_lint_names_what_is_wrong_with_a_modelfile(deploy, tmp_path, fault, says):
    template, system, turns = contract.serving_template("medical", {"prompt_template": TEMPLATE}, None)
    serving = dict(task="medical", system=system, turns=turns, stop=["<|im_end|>"], max_length=256, temperature=0)
    text = deploy.modelfile.write("./x", template, serving)
    (tmp_path / "x").touch()
    deploy.modelfile.lint(text, tmp_path, serving)
    with pytest.raises(SystemExit, match=says):
        deploy.modelfile.lint(text.replace(*fault), tmp_path, serving)


def test_an_old_run_gets_its_contract_and_a_changed_base_is_refused(deploy, run, tokenizer, tmp_path):
    opened = deploy.found.open_run(run)
    serving = json.loads((run / "serving.json").read_text())
    assert (serving["eos_id"], serving["stop"], serving["turns"]) == (2, ["<|im_end|>", "<|endoftext|>"], "single")
    assert (serving["scaling"], serving["kind"], serving["base_digest"]) == (1.0, "plain", serving["base_digest"])
    assert opened.base == Path(json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"])
    other = make_base(tmp_path / "other", tokenizer, seed=5)
    with pytest.raises(SystemExit, match="was trained on another model"):
        deploy.found.open_run(run, str(other))


# -- the gate: what it must catch


@pytest.fixture(scope="module")
def bench(deploy, made, tokenizer, tmp_path_factory):
    """Judges a file against the run: bench(file or folder) -> exit code of this arm."""
    import torch

    run = deploy.found.open_run(made)
    serving, template = deploy.found.contract(run)
    pairs = deploy.scores.texts(run, tokenizer, template, None, 256)
    reference = deploy.scores.Reference(run, pairs, torch.float32, tmp_path_factory.mktemp("reference"))
    expected = contract.probe_ids(tokenizer, template)

    def judge(path):
        judge_it = deploy.gate.judge_folder if path.is_dir() else deploy.gate.judge_gguf
        more = (torch.float32,) if path.is_dir() else ()
        found, kl, faults, kind = judge_it(path, reference, expected, serving, *more)
        at, low, high = deploy.gate.slope(
            reference.adapter - reference.base, found - reference.base, reference.groups, 0
        )
        return deploy.gate.verdict(low, high, kl, deploy.gate.LIMITS[kind], 1.0, faults), at, kl, faults

    def gguf(file, folder=made, base=None, quant="f16", **changes):
        adapter = deploy.merged.Adapter(folder, base or run.base)
        own = serving | changes
        deploy.gguf_file.write_model(adapter, folder, file, quant, own, own.get("template", template), "x")
        return file

    return SimpleNamespace(
        judge=judge, gguf=gguf, run=run, reference=reference, moved=reference.adapter - reference.base
    )


@pytest.mark.slow
def test_good_files_pass_and_the_base_is_called_the_base(deploy, bench, tmp_path):
    for quant in ("f16", "q8_0"):
        code, at, kl, faults = bench.judge(bench.gguf(tmp_path / f"{quant}.gguf", quant=quant))
        assert (code, faults) == (0, []) and abs(at - 1) < 0.05 and kl < deploy.gate.LIMITS[quant], (at, kl)
    code, at, _, _ = bench.judge(base_gguf(bench, deploy, tmp_path))
    assert code == 4 and abs(at) < 0.02


def base_gguf(bench, deploy, tmp_path):
    serving, template = deploy.found.contract(bench.run)
    file, plain = tmp_path / "base.gguf", deploy.merged.Adapter(None, bench.run.base)
    deploy.gguf_file.write_model(plain, bench.run.adapter, file, "f16", serving, template, "base")
    return file


def changed(made, folder, change):
    """A copy of the run whose adapter weights, or settings, are changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(made, folder)
    weights, settings = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    change(weights, settings)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_mutation_1_a_swapped_base(bench, tokenizer, tmp_path):
    other = make_base(tmp_path / "other", tokenizer, seed=7)
    assert bench.judge(bench.gguf(tmp_path / "x.gguf", base=other))[0] == 5


@pytest.mark.slow
def test_mutation_2_alpha_doubled(bench, made, tmp_path):
    def double(weights, settings):
        settings["lora_alpha"] *= 2

    code, at, _, _ = bench.judge(bench.gguf(tmp_path / "x.gguf", folder=changed(made, tmp_path / "run", double)))
    assert code == 5 and at > 1.4


@pytest.mark.slow
def test_mutation_3_q_and_k_not_permuted(bench, deploy, monkeypatch, tmp_path):
    monkeypatch.setattr(deploy.gguf_file, "heads_of", lambda *_: 0)
    assert bench.judge(bench.gguf(tmp_path / "x.gguf"))[0] == 5


@pytest.mark.slow
def test_mutation_4_chatml_instead_of_the_trained_prompt(bench, tokenizer, tmp_path):
    code, at, _, faults = bench.judge(bench.gguf(tmp_path / "x.gguf", template=tokenizer.chat_template))
    assert code == 5 and "other tokens" in faults[0] and abs(at - 1) < 0.02  # the weights are right


@pytest.mark.slow
def test_mutation_5_no_end_token(bench, tmp_path):
    code, _, _, faults = bench.judge(bench.gguf(tmp_path / "x.gguf", eos_id=500))
    assert code == 5 and "does not end" in faults[0]


@pytest.mark.slow
def test_mutation_6_an_adapter_of_zeros(bench, made, tmp_path):
    def zero(weights, settings):
        for name, tensor in weights.items():
            tensor.zero_() if "lora_B" in name else None

    code, at, _, _ = bench.judge(bench.gguf(tmp_path / "x.gguf", folder=changed(made, tmp_path / "run", zero)))
    assert code == 4 and at == pytest.approx(0, abs=0.02)


@pytest.mark.slow
def test_mutation_7_pissa_that_was_not_converted(deploy, base, tokenizer, tmp_path, monkeypatch):
    """Read as W + s B A it is another model; merged by PEFT it is the trained one."""
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    run = make_run(tmp_path / "outputs" / "medical" / "pissa", base, tokenizer, init_lora_weights="pissa")
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    opened = deploy.found.open_run(run)
    serving, template = deploy.found.contract(opened)
    assert serving["kind"] == "merge"
    adapter = deploy.merged.Adapter(run, opened.base)
    deploy.gguf_file.write_model(adapter, run, right, "f16", serving, template, "x")
    assert adapter.worst > 0.1  # ||dW - sBA|| / ||sBA||
    assert call(deploy.gate.main, run, "--files", right) == 0
    plain = tmp_path / "plain.gguf"  # PEFT changes the base for PiSSA: what it disables the adapter on is none
    deploy.gguf_file.write_model(deploy.merged.Adapter(None, opened.base), run, plain, "f16", serving, template, "x")
    assert call(deploy.gate.main, run, "--files", plain) == 4
    adapter.config.init_lora_weights = True
    deploy.gguf_file.write_model(adapter, run, wrong, "f16", serving, template, "x")
    assert call(deploy.gate.main, run, "--files", wrong) == 5
    assert "not W + s B A" in call(deploy.export.main, run, "--to", "adapter_gguf")


@pytest.mark.slow
def test_a_sign_that_was_lost(bench, made, tmp_path):
    def negate(weights, settings):
        for name, tensor in weights.items():
            tensor.neg_() if "lora_B" in name else None

    code, at, _, _ = bench.judge(bench.gguf(tmp_path / "x.gguf", folder=changed(made, tmp_path / "run", negate)))
    assert code == 5 and at < 0


def test_verdicts_need_an_interval_that_leaves_out_the_alternatives(deploy):
    import numpy

    verdict = deploy.gate.verdict
    assert verdict(0.9, 1.1, 0.001, 0.02) == 0 and verdict(0.9, 1.1, 0.05, 0.02) == 5
    assert verdict(-0.1, 0.1, 0.0, 0.02) == 4 and verdict(1.9, 2.1, 0.001, 0.02) == 5
    assert verdict(-0.2, 1.4, 0.001, 0.02) == 6 and verdict(0.9, 1.1, 0.001, 0.02, 1.0, ["x"]) == 5
    assert (
        verdict(1.4, 2.3, 0.001, 0.02, 0.9) == 5 and verdict(1.4, 2.3, 0.001, 0.02, 0.1) == 6
    )  # rounding, not a scale
    draw = numpy.random.default_rng(0)
    x, groups = draw.normal(size=400), numpy.repeat(range(20), 20)
    at, low, high = deploy.gate.slope(x, 2 * x + 0.1 * draw.normal(size=400), groups, 0)
    assert low < 2 < high and high - low < 0.1 and at == pytest.approx(2, abs=0.02)
    _, low, high = deploy.gate.slope(x, x + 30 * draw.normal(size=400), groups, 0)
    assert verdict(low, high, 0.001, 0.02) == 6  # noise: more texts are needed


# -- export


@pytest.mark.slow
def test_export_and_gate_of_a_run_and_again(deploy, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = deploy.export.main(["--to", "merged,gguf,adapter_gguf,ollama", "--quant", "q8_0"])
    assert folder == tmp_path / "outputs" / "deploy" / "medical-run"
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {"merged", "medical-run-q8_0.gguf", "medical-run-adapter.gguf", "Modelfile"}
    assert (
        {Path(name).parts[0] for name in manifest["files"]}
        == names
        == {p.name for p in folder.iterdir()} - {"manifest.json", ".lock"}
    )
    assert manifest["files"]["medical-run-q8_0.gguf"]["types"]["Q8_0"] and manifest["plain_error"] < 1e-3
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix in (".gguf", ".safetensors")}
    assert deploy.export.main(["--to", "merged,gguf,ollama", "--quant", "q8_0"]) == folder
    assert "already done" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert call(deploy.gate.main) == 0  # the newest run, and what was exported of it
    said, page = capsys.readouterr().out, (folder / "gate.html").read_text("utf-8")
    assert said.count("the trained model") == 4 and "http" not in re.sub(r'<html lang="en">', "", page)
    assert json.loads((folder / "gate.json").read_text())["code"] == 0


@pytest.mark.slow
def test_other_digests_take_another_folder(deploy, run, made, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    first = deploy.export.main([str(run), "--to", "merged,adapter_gguf"])
    digests = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    shutil.rmtree(run)
    make = changed(made, run, lambda weights, settings: settings.update(lora_alpha=8))
    second = deploy.export.main([str(make), "--to", "merged,adapter_gguf"])
    assert (first.name, second.name) == ("medical-run", "medical-run-2")
    assert digests == {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_files_that_were_changed_or_cut_short_after_the_export(deploy, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = deploy.export.main([str(run), "--to", "merged,gguf", "--quant", "f16"])
    weights, gguf = folder / "merged" / "model.safetensors", folder / "medical-run-f16.gguf"
    for file, says in ((gguf, "Export it again"), (weights, "cut off or damaged")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert says in call(deploy.gate.main, run)
        assert "is not what this run gives" in call(deploy.export.main, run, "--to", "merged,gguf", "--quant", "f16")
        assert file.stat().st_size == len(whole) // 2  # nothing of a user's is overwritten
        file.write_bytes(whole)
    assert deploy.export.main([str(run), "--to", "merged,gguf", "--quant", "f16"]) == folder


@pytest.mark.slow
def test_transformers_and_peft_load_what_was_exported_in_a_fresh_process(deploy, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = deploy.export.main([str(run), "--to", "merged"])
    code = f"""
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder / "merged")!r})
ids = tokenizer.apply_chat_template([dict(role="user", content="Is tea good?")], add_generation_prompt=True, return_tensors="pt")["input_ids"]
assert tokenizer.decode(ids[0]).endswith("### 回答：\\n"), tokenizer.decode(ids[0])
merged = AutoModelForCausalLM.from_pretrained({str(folder / "merged")!r}, dtype=torch.float32)
adapter = AutoPeftModelForCausalLM.from_pretrained({str(run)!r}, dtype=torch.float32)
with torch.no_grad():
    a, b = (model(ids).logits.log_softmax(-1) for model in (adapter, merged))
assert merged.generation_config.eos_token_id == [2, 0], merged.generation_config
print("KL", float((a.exp() * (a - b)).sum(-1).mean()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("KL")[1]) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dict(use_rslora=True), dict(use_dora=True), dict(init_lora_weights="olora")])
def test_kinds_of_lora_are_merged_as_peft_reads_them(deploy, base, tokenizer, tmp_path, kind):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path / "run", base, tokenizer, **kind)
    own = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run
    ).merge_and_unload()
    adapter = deploy.merged.Adapter(run, base)
    for name, tensor in own.state_dict().items():
        if name in adapter.entries:
            assert torch.allclose(adapter.weight(name), tensor, atol=1e-5), name
    assert (adapter.kind, adapter.worst < 1e-3) == (("plain", True) if "use_rslora" in kind else ("merge", False))


@pytest.mark.parametrize(
    "fault, says",
    [("zeros of NaN", "not finite"), ("embedding", "is no LoRA matrix"), ("shape", "was not trained on"),
     ("niter", "pissa_niter_4 changed"), ("reward", "is a reward model"), ("no adapter", "holds no adapter"),
     ("4-bit base", "quantised weights"), ("new token", "a vocabulary that grew"), ("cut", "cut off or damaged"),
     ("record", "run.json"), ("another alpha", "trained with --lora_alpha 4"), ("not LoRA", "only LoRA")],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_in_one_line(
    deploy, run, base, tokenizer, tmp_path, monkeypatch, fault, says
):
    import torch

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

    def spoil(weights, settings):
        if fault == "zeros of NaN":
            weights[key][0, 0] = float("nan")
        elif fault == "embedding":
            weights["base_model.model.model.embed_tokens.weight"] = torch.zeros(49160, 64)
        elif fault == "shape":
            weights[key] = torch.zeros(96, 4)
        elif fault == "niter":
            settings["init_lora_weights"] = "pissa_niter_4"
        elif fault == "reward":
            settings["task_type"] = "SEQ_CLS"
        elif fault == "not LoRA":
            settings["peft_type"] = "IA3"
        elif fault == "4-bit base":
            settings["base_model_name_or_path"] = str(shutil.copytree(base, tmp_path / "nf4"))
            config = json.loads((tmp_path / "nf4" / "config.json").read_text())
            (tmp_path / "nf4" / "config.json").write_text(
                json.dumps(config | {"quantization_config": {"load_in_4bit": True}})
            )

    spoiled = changed(run, tmp_path / "spoiled", spoil)
    if fault == "new token":
        content = json.loads((spoiled / "tokenizer.json").read_text("utf-8"))
        content["added_tokens"].append(content["added_tokens"][0] | {"id": len(tokenizer), "content": "<new>"})
        (spoiled / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    if fault == "cut":
        file = spoiled / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    if fault in ("record", "another alpha"):
        arguments = {"max_length": "long"} if fault == "record" else {"max_length": 256, "lora_alpha": 4}
        settings = json.loads((spoiled / "adapter_config.json").read_text()) | {"lora_alpha": 8}
        (spoiled / "adapter_config.json").write_text(json.dumps(settings))
        (spoiled / "run.json").write_text(json.dumps({"task": "medical", "arguments": arguments}))
    if fault == "no adapter":
        (spoiled / "adapter_config.json").unlink()
    message = call(deploy.export.main, spoiled, "--to", "merged")
    assert says in message and not list((tmp_path / "outputs").glob("deploy/*/merged"))


@pytest.mark.parametrize("flags, says", [(["--to", "zip"], "--to 'zip'"), (["--quant", "q3"], "--quant 'q3'"),
                                         (["--to", "ollama"], "add gguf"), (["--quants", "f16"], "did you mean --quant")])  # fmt: skip
def test_wrong_flags_of_export(deploy, run, flags, says):
    assert says in call(deploy.export.main, run, *flags)


@pytest.mark.slow
@pytest.mark.parametrize("size", [-1000, 300_000, 5000, 10, 0])
def test_a_gguf_that_is_cut_short_is_named(deploy, plain_gguf, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(plain_gguf.read_bytes()[:size])
    with pytest.raises(SystemExit, match="Export it again"):
        deploy.gguf_file.describe(cut)


@pytest.mark.slow
def test_the_header_is_read_as_gguf_reads_it(deploy, plain_gguf):
    import gguf

    reader, found = gguf.GGUFReader(plain_gguf), deploy.gguf_file.describe(plain_gguf)
    types = [each.tensor_type.name for each in reader.tensors]
    assert found["types"] == {name: types.count(name) for name in types}
    bits = 8 * sum(int(each.n_bytes) for each in reader.tensors) / sum(int(each.n_elements) for each in reader.tensors)
    assert found["bits"] == pytest.approx(bits, abs=0.01)
    for key in ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "llama.attention.layer_norm_rms_epsilon"):
        assert found["fields"][key] == reader.fields[key].contents()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half(deploy, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy.merged, "save_file", full)
    assert "disk is full" in call(deploy.export.main, run, "--to", "merged")
    folder = tmp_path / "outputs" / "deploy" / "medical-run"
    assert {each.name for each in folder.iterdir()} <= {".lock"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "not enough disk space for the export" in call(deploy.export.main, run, "--to", "merged")


def test_too_little_memory_is_said_before(deploy, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(deploy.export, "free_memory", lambda: 10_000_000)
    assert "not enough memory" in call(deploy.export.main, run, "--to", "merged")


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_half_and_goes_on(deploy, run, environment, tmp_path, monkeypatch):
    code = "import merged, time; save = merged.save_file\ndef slow(*a, **k):\n    save(*a, **k)\n    print('written', flush=True)\n    time.sleep(60)\n"
    code += f"merged.save_file = slow\nimport export\nexport.main([{str(run)!r}, '--to', 'merged'])"
    environment = environment | {"PYTHONPATH": str(ROOT / "deploy")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=ROOT / "deploy", stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line == "written\n":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = tmp_path / "outputs" / "deploy" / "medical-run"
    assert not (folder / "merged").exists() and list(folder.glob(".new-*"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    assert deploy.export.main([str(run), "--to", "merged"]) == folder
    assert (folder / "merged" / "model.safetensors").is_file() and not list(folder.glob(".new-*"))


# -- quantising


def test_a_llama_quantize_on_path_comes_first(deploy, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    deploy.quantise.quantise(tmp_path / "in.gguf", tmp_path / "out.gguf", "q4_k_m", 2)
    assert (tmp_path / "out.gguf").read_text().split() == [
        str(tmp_path / "in.gguf"),
        str(tmp_path / "out.gguf"),
        "Q4_K_M",
        "2",
    ]


def test_another_package_than_the_known_one_is_not_unpacked(deploy, tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is another file"):
        deploy.quantise.unpack(tmp_path / "x.tgz", tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_without_npm_and_library_the_message_says_what_to_do(deploy, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="llama-quantize on PATH"):
        deploy.quantise.fetch()


def need_quantiser(deploy):
    """One that is there already, or npm, which fetches it."""
    there = any((place / deploy.quantise.LIBRARIES[-1]).is_file() for place in deploy.quantise.places())
    if not there and not shutil.which("npm"):
        pytest.skip("no quantiser and no npm")


@pytest.mark.slow
@pytest.mark.parametrize("width, said", [(256, ""), (96, "rows of K-quants are multiples of 256")])
def test_a_k_quant_is_made_and_passes(deploy, tokenizer, tmp_path, monkeypatch, capsys, width, said):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    need_quantiser(deploy)
    base = make_base(tmp_path / "base", tokenizer, hidden_size=width, intermediate_size=width, initializer_range=0.05)
    run = make_run(tmp_path / "outputs" / "medical" / "wide", base, tokenizer, scale=1.0)
    folder = deploy.export.main([str(run), "--to", "gguf", "--quant", "q4_k_m"])
    shown = capsys.readouterr().out
    assert said in shown and ("multiples of 256" in shown) == bool(said) and not list(folder.glob(".new-*"))
    assert ("Q4_K" in deploy.gguf_file.describe(folder / "medical-wide-q4_k_m.gguf")["types"]) == (width == 256)
    assert call(deploy.gate.main, run) == 0


@NIGHTLY
@pytest.mark.slow
def test_smollm2_in_three_quants_passes_in_llama_cpp(
    deploy, demo_model, smollm2_tokenizer, tmp_path, monkeypatch, capsys
):
    """The whole way on the demo model."""
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    need_quantiser(deploy)
    tokenizer = smollm2_tokenizer
    run = make_run(tmp_path / "outputs" / "medical" / "smol", demo_model, tokenizer, scale=2.0)
    rows = (run / "heldout.jsonl").read_text().splitlines()[:5]
    (run / "heldout.jsonl").write_text("\n".join(rows))
    folder = deploy.export.main([str(run), "--to", "gguf,ollama", "--quant", "f16,q8_0,q4_k_m"])
    assert "rows of K-quants are multiples of 256" in capsys.readouterr().out
    assert call(deploy.gate.main, run) == 0
    found = {arm["arm"]: arm for arm in json.loads((folder / "gate.json").read_text())["arms"]}
    assert found["medical-smol-f16.gguf"]["kl"] < 1e-4 and found["medical-smol-q8_0.gguf"]["kl"] < 0.02
    with deploy.llama.server(folder / "medical-smol-q4_k_m.gguf", 512, 1) as ask:
        said = ask("/v1/chat/completions", {"messages": contract.PROBES[3], "max_tokens": 4, "temperature": 0})
    assert said["usage"]["prompt_tokens"] == len(
        contract.probe_ids(tokenizer, contract.serving_template("medical", {"prompt_template": TEMPLATE}, None)[0])[3]
    )


# -- a run that trained every weight


def test_a_run_that_trained_every_weight_is_exported_and_judged(deploy, base, run, tmp_path, monkeypatch, capsys):
    """lora_variants --full: no adapter, a model in model/. The base that it began with is what the gate compares with."""
    import torch
    from transformers import AutoModelForCausalLM

    from common.files import fingerprint

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data *= 1 + 0.03 * torch.randn_like(parameter)
    model.save_pretrained(run / "model")
    for file in ("tokenizer.json", "tokenizer_config.json", "adapter_config.json", "adapter_model.safetensors"):
        (run / file).rename(run / "model" / file) if file.startswith("tok") else (run / file).unlink()
    record = json.loads((run / "run.json").read_text())
    record |= {"weights": fingerprint(base)}
    record["arguments"]["model"] = str(base)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="trained every weight and has no adapter: export.py"):
        deploy.found.open_run(run)
    assert "has no adapter" in call(deploy.export.main, run, "--to", "adapter_gguf")
    folder = deploy.export.main([str(run), "--to", "merged,gguf,ollama", "--quant", "f16,q8_0"])
    assert call(deploy.gate.main, run) == 0, capsys.readouterr().out
    arms = json.loads((folder / "gate.json").read_text())["arms"]
    assert [arm["code"] for arm in arms[2:]] == [0, 0, 0]
    serving = json.loads((folder / "merged" / "serving.json").read_text())
    assert (serving["kind"], serving["base"], serving["r"]) == ("whole", str(base), None)
    shutil.copytree(folder / "merged", tmp_path / "plain")  # the base under its name
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "plain")
    assert call(deploy.gate.main, run, "--files", tmp_path / "plain") == 4
    record["weights"] = "another"
    (run / "run.json").write_text(json.dumps(record))
    assert "was trained on another model" in call(deploy.gate.main, run)


# -- what takes long: trained adapters of every recipe, and the tokenizer of Qwen2.5

LIGHT = ["--max_steps", 4, "--eval_strategy", "no", "--load_best_model_at_end", "false"]
TRAINED = {
    "alpaca": [("train.py", *LIGHT)],
    "medical": [("train.py", *LIGHT)],
    "domain_mix": [("train.py", *LIGHT)],
    "s1_scaling": [("train.py", *LIGHT)],
    "lora_variants": [("train.py", "--variant", "pissa", *LIGHT)],
    "continual": [("train.py",), ("sft.py", "--max_steps", 4)],
    "r1_grpo": [("train.py", "--max_steps", 4)],
    "rlhf_ppo": [("train_reward.py",), ("train_grpo.py", "--max_steps", 4)],
    "preference": [("dpo.py", "--max_steps", 4)],
}


@NIGHTLY
@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAINED)
def test_a_trained_adapter_of_each_recipe_is_what_is_exported(recipe, deploy, script, tmp_path):
    """As a user does it, by the command line. Only K-quants may be too coarse for so little training to tell."""
    need_quantiser(deploy)
    for file, *flags in TRAINED[recipe]:
        script(ROOT / recipe / file, "--demo", *flags)
    script(ROOT / "deploy" / "export.py", "--to", "merged,gguf", "--quant", "f16,q8_0,q4_k_m")
    gate = script(ROOT / "deploy" / "gate.py", check=False)
    print(gate.stdout)
    (made,) = tmp_path.glob("outputs/deploy/*/gate.json")
    codes = {arm["arm"]: arm["code"] for arm in json.loads(made.read_text())["arms"][2:]}
    assert len(codes) == 4 and all(code == 0 or code == 6 and arm.endswith("_k_m.gguf") for arm, code in codes.items())
    assert gate.returncode in (0, 6)


@NIGHTLY
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("QWEN_TOKENIZER"), reason="QWEN_TOKENIZER: a folder with Qwen2.5's tokenizer")
def test_qwens_own_tokenizer_in_transformers_and_llama_cpp(deploy, modules_of, tmp_path, monkeypatch):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from common.models import load_tokenizer

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    tokenizer = load_tokenizer(Path(os.environ["QWEN_TOKENIZER"]))
    torch.manual_seed(0)
    tokens = dict(vocab_size=151936, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    base = tmp_path / "base"
    Qwen2ForCausalLM(Qwen2Config(initializer_range=0.1, tie_word_embeddings=True, **tokens, **SHAPE)).save_pretrained(
        base
    )
    tokenizer.save_pretrained(base)
    run = make_run(tmp_path / "outputs" / "medical" / "qwen", base, tokenizer)
    folder = deploy.export.main([str(run), "--to", "merged,gguf", "--quant", "f16"])
    assert call(deploy.gate.main, run) == 0  # its own template, in the merged folder and in the GGUF
    for recipe in RECIPES:
        task = recipe.split()[0]
        texts = {} if "chat" in recipe else folder_texts(modules_of, task)[1]
        template = contract.serving_template(task, texts, tokenizer.chat_template)[0]
        with deploy.llama.server(folder / "medical-qwen-f16.gguf", 512, 1, template=template) as ask:
            asked = [deploy.llama.prompt_ids(ask, probe) for probe in contract.PROBES]
        assert asked == contract.probe_ids(tokenizer, template), recipe


# -- push, with a hub that is not there


class FakeApi:
    """huggingface_hub.HfApi as push.py calls it. Every call is bound to the real method's parameters."""

    repos, broken = {}, ""

    def __init__(self):
        import huggingface_hub

        self.real = huggingface_hub.HfApi

    def check(self, name, *args, **named):
        import inspect

        inspect.signature(getattr(self.real, name)).bind(self, *args, **named)

    def whoami(self):
        self.check("whoami")
        if FakeApi.broken == "account":
            raise OSError("401 Client Error")
        return {"name": "me"}

    def create_repo(self, repo, **named):
        self.check("create_repo", repo, **named)
        FakeApi.repos.setdefault(repo, {"private": named["private"], "files": {}})

    def repo_info(self, repo):
        self.check("repo_info", repo)
        return SimpleNamespace(private=FakeApi.repos[repo]["private"])

    def upload_folder(self, **named):
        self.check("upload_folder", **named)
        for file in Path(named["folder_path"]).iterdir():
            content = file.read_bytes()
            FakeApi.repos[named["repo_id"]]["files"][file.name] = (
                content[:-1] if FakeApi.broken == file.name else content
            )

    def model_info(self, repo, **named):
        import hashlib

        self.check("model_info", repo, **named)
        files = FakeApi.repos[repo]["files"].items()
        hashes = {n: SimpleNamespace(sha256=hashlib.sha256(c).hexdigest()) for n, c in files if n.endswith("tensors")}
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=n, size=len(c), lfs=hashes.get(n)) for n, c in files]
        )


@pytest.fixture
def push(modules_of, deploy, monkeypatch, tmp_path):
    import huggingface_hub

    FakeApi.repos, FakeApi.broken, real = {}, "", huggingface_hub.HfApi
    found = modules_of("deploy", ("push",)).push
    monkeypatch.setattr(found, "contract", deploy.found.contract)

    class Api(FakeApi):
        def __init__(self):
            self.real = real

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    return found


@pytest.mark.slow
def test_push_uploads_known_files_privately_and_reads_them_back(push, run, capsys):
    for name in (".env", "optimizer.pt", "metrics.jsonl", "patients.csv"):
        (run / name).write_text("x")
    push.main([str(run), "--to", "me/medical", "--dry_run"])
    assert not FakeApi.repos and "nothing was uploaded" in capsys.readouterr().out
    push.main([str(run), "--to", "me/medical"])
    repo = FakeApi.repos["me/medical"]
    assert repo["private"] and "read back" in capsys.readouterr().out
    expected = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "serving.json",
                "serving_template.jinja", "prompt_template.txt", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert set(repo["files"]) == expected
    assert repo["files"]["README.md"].decode().startswith("---\nbase_model: ") and not list(run.glob(".push-*"))


@pytest.mark.slow
@pytest.mark.parametrize("broken, says", [("adapter_model.safetensors", "adapter_model.safetensors has"),
                                          ("account", "Is there an account")])  # fmt: skip
def test_an_upload_that_is_not_whole_or_not_allowed_is_an_error(push, run, broken, says):
    FakeApi.broken = broken
    assert says in call(push.main, run, "--to", "me/medical")


def test_without_modelscopes_client_one_line_says_so_before_anything_else(push, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    said = call(push.main, tmp_path / "no-run", "--hub", "modelscope", "--to", "me/medical")
    assert "pip install modelscope-hub" in said and "\n" not in said
    assert "holds no adapter" in call(push.main, tmp_path / "no-run", "--to", "me/medical")


@pytest.mark.slow
def test_push_refuses_secrets_a_public_repository_and_files_that_were_not_gated(push, run, deploy):
    deploy.export.main([str(run), "--to", "adapter_gguf"])
    assert "gate.py has not passed" in call(push.main, run, "--to", "me/x", "--what", "gguf")
    FakeApi.repos["me/x"] = {"private": False, "files": {}}
    assert "is public" in call(push.main, run, "--to", "me/x")
    (run / "prompt_template.txt").write_text(TEMPLATE + "hf_" + "a" * 34, "utf-8")
    assert "access token" in call(push.main, run, "--to", "me/y") and "me/y" not in FakeApi.repos
    assert "--to ACCOUNT/NAME" in call(push.main, run)


# -- a served model


@pytest.fixture
def vllm(bench, tokenizer):
    """A server that answers as vLLM's: prompt_logprobs of the run's own adapter, of the base, or of twice the update."""
    import http.server
    import threading

    import numpy

    state = SimpleNamespace(share=1.0, template=None)
    own, first = bench.reference, bench.reference.first
    texts = {tuple(ids): number for number, (ids, _) in enumerate(own.pairs)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"data": [{"id": "base"}, {"id": "medical"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                ids = tokenizer.apply_chat_template(
                    asked["messages"], chat_template=state.template, add_generation_prompt=True, return_dict=False
                )
                return self.answer({"tokens": list(ids)})
            assert asked["model"] == "medical" and asked["prompt_logprobs"] == 20
            where = numpy.flatnonzero(own.groups == texts[tuple(asked["prompt"])])
            told = [None] + [{str(token): {"logprob": -1.0}} for token in asked["prompt"][1:]]
            for at, position in zip(where, range(first, len(asked["prompt"])), strict=True):
                top = {str(i): {"logprob": float(own.kept[at][i])} for i in own.kept[at].argsort()[-20:]}
                lp = own.base[at] + state.share * (own.adapter[at] - own.base[at])
                told[position] = top | {str(asked["prompt"][position]): {"logprob": float(lp)}}
            self.answer({"choices": [{"prompt_logprobs": told}]})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()


@pytest.mark.slow
def test_a_served_model_is_an_arm_of_the_gate(deploy, bench, modules_of, tokenizer, vllm):
    served = modules_of("deploy", ("served",)).served
    _, template = deploy.found.contract(bench.run)
    vllm.template, expected = template, contract.probe_ids(tokenizer, template)
    for share, code in ((1.0, 0), (0.0, 4), (2.0, 5)):
        vllm.share = share
        found, kl, faults, kind = served.judge(vllm.url, "medical", bench.reference, expected)
        at, low, high = deploy.gate.slope(bench.moved, found - bench.reference.base, bench.reference.groups, 0)
        assert at == pytest.approx(share, abs=1e-6) and not faults
        assert deploy.gate.verdict(low, high, kl if share == 1 else 0, deploy.gate.LIMITS[kind], 1.0, faults) == code
        assert share != 1 or kl < 1e-6
    vllm.template = tokenizer.chat_template
    assert "other tokens" in served.judge(vllm.url, "medical", bench.reference, expected)[2][0]
    assert "the server has base, medical" in call(lambda argv: served.pick(vllm.url, None))


# -- a model that sees


@pytest.mark.slow
def test_a_vision_run_reads_the_same_dashboards_in_llama_cpp(deploy, modules_of, tmp_path, monkeypatch, capsys):
    """The miniature with a random adapter on both parts: text GGUF and mmproj answer as transformers and PEFT do."""
    import base64
    import io

    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from PIL import Image

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    names = ("windows", "pictures", "prompt", "fields", "model", "answers")
    vl, base = modules_of("vl_insurance", names), ROOT / "vl_insurance" / "miniature"
    prompt = vl.prompt.PROMPT
    run = tmp_path / "outputs" / "vl_insurance" / "run"
    torch.manual_seed(0)
    text, vision = r"(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj", r"(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)"
    targets = rf".*(language_model\.layers\.\d+\.{text}|visual\.blocks\.\d+\.{vision})"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules=targets)
    model = get_peft_model(vl.model.load_base(base, "hf", None, torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data + 0.5 * torch.randn_like(parameter) / parameter.shape[0] ** 0.5
    model.save_pretrained(run)
    processor = vl.model.load_processor(base, vl.model.saved_max_pixels(base))
    processor.save_pretrained(run)
    settings = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (run / "adapter_config.json").write_text(json.dumps(settings))
    (run / "prompt.txt").write_text(prompt, "utf-8")
    (run / "run.json").write_text(
        json.dumps({"task": "vl_insurance", "status": "finished", "arguments": {"max_length": 512}})
    )
    photos = sorted((ROOT / "vl_insurance" / "sample" / "images").glob("*.jpg"))[:4]
    model = PeftModel.from_pretrained(vl.model.load_base(base, "hf", None, torch.float32), str(run)).eval()
    expected = vl.answers.generate(model, processor, photos, [prompt] * 4, 120)

    folder = deploy.export.main([str(run), "--to", "merged,gguf,ollama", "--quant", "f16,q8_0"])
    assert "FROM ./merged" in (folder / "Modelfile").read_text("utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(json.dumps({"prompt": f"{n} {prompt}", "response": said}) for n, said in enumerate(expected * 5)),
        "utf-8",
    )
    assert call(deploy.gate.main, run, "--rows", rows) == 0, capsys.readouterr().out
    text_gguf, mmproj = folder / "vl_insurance-run-f16.gguf", folder / "vl_insurance-run-mmproj.gguf"
    found = []
    with deploy.llama.server(text_gguf, 1024, 2, mmproj=mmproj) as ask:
        for photo in photos:
            buffer = io.BytesIO()
            Image.open(photo).convert("RGB").save(buffer, "PNG")
            url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
            asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 120, "temperature": 0}
            found.append(ask("/v1/chat/completions", asked)["choices"][0]["message"]["content"].strip())
    assert found == expected


@pytest.mark.slow
def test_qwen2_with_its_biases_and_two_shards(deploy, tokenizer, tmp_path, monkeypatch):
    """The other architecture: biases of q, k and v, rows not permuted; and a base and an output in several files."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(deploy.merged, "SHARD", 200_000)
    torch.manual_seed(3)
    tokens = dict(vocab_size=len(tokenizer) + 48, eos_token_id=2)  # padded, as Qwen's is
    config = Qwen2Config(initializer_range=0.25, tie_word_embeddings=False, **tokens, **SHAPE)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    tokenizer.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    run = make_run(tmp_path / "outputs" / "medical" / "qwen", tmp_path / "base", tokenizer)
    folder = deploy.export.main([str(run), "--to", "merged,gguf", "--quant", "f16"])
    assert len(list((folder / "merged").glob("model-*-of-*.safetensors"))) > 1
    code = call(deploy.gate.main, run)
    arms = {arm["arm"]: arm for arm in json.loads((folder / "gate.json").read_text())["arms"]}
    assert arms["medical-qwen-f16.gguf"]["code"] == 0
    assert abs(arms["merged"]["slope"] - 1) < 0.05 and arms["merged"]["kl"] < 5e-3
    # A Qwen2 folder is read with Qwen2's way to split text, which SmolLM2's tokenizer does not have: that is seen, too.
    assert code == 5 and "other tokens" in arms["merged"]["verdict"]


@pytest.mark.slow
def test_training_that_changed_nothing_is_code_3(deploy, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    still = changed(
        run, tmp_path / "still", lambda weights, _: [each.zero_() for name, each in weights.items() if "lora_B" in name]
    )
    assert call(deploy.gate.main, still) == 3 and (still / "gate.html").is_file()


def test_gate_reads_given_rows_and_names_a_wrong_line(deploy, run, tokenizer, tmp_path):
    opened = deploy.found.open_run(run)
    _, template = deploy.found.contract(opened)
    rows, talk = tmp_path / "rows.jsonl", [{"role": "user", "content": "Is tea good?"}]
    lines = [
        {"prompt": talk, "response": "Yes."},
        {"question": "Is tea good?", "answer": "No."},
        {"prompt": talk, "response": "Yes."},
    ]
    rows.write_text("\n".join(map(json.dumps, lines)))
    pairs = deploy.scores.texts(opened, tokenizer, template, str(rows), 256)
    said = [(tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:])) for ids, first in pairs]
    asked = TEMPLATE.replace("{question}", "Is tea good?")
    assert said == [(asked, "Yes.<|im_end|>"), (asked, "No.<|im_end|>")]  # the third is the first again
    rows.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(SystemExit, match="line 2: a row needs"):
        deploy.scores.texts(opened, tokenizer, template, str(rows), 256)
    (run / "heldout.jsonl").unlink()
    opened.record["task"] = "no_such_recipe"
    with pytest.raises(SystemExit, match="give --rows FILE"):
        deploy.scores.texts(opened, tokenizer, template, None, 256)


def test_a_run_keeps_its_held_out_rows_as_ids(tmp_path):
    from datasets import Dataset

    held = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, 6, 7], [-100, 9]]})
    train = Dataset.from_dict({"input_ids": [[1, 2]] * 60, "labels": [[1, 2]] * 60})
    contract.keep_rows(tmp_path, held, train, None, Dataset.from_dict({"prompt": ["x"]}))
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    assert rows[0] == {"input_ids": [5, 6, 7], "answer": 1} and len(rows) == contract.KEPT
    assert rows[2] == {"input_ids": [1, 2], "answer": 0}


@pytest.mark.slow
def test_the_folders_copied_alone_from_training_to_the_gate(copied, environment, tiny_model):
    """What the README promises, with nothing else of the repository: train, export, gate on the run's held-out rows."""
    medical, deploy = copied("medical"), copied("deploy")

    def run(script, *arguments):
        command = [sys.executable, script, *map(str, arguments)]
        return subprocess.run(command, cwd=medical.parent, env=environment, capture_output=True, text=True)

    small = ["--demo", "--model", tiny_model, "--show_answers", 0, "--max_steps", 4, "--learning_rate", 0.05]
    done = run(medical / "train.py", *small, "--eval_strategy", "no", "--load_best_model_at_end", "false")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(deploy / "export.py", "--to", "gguf,ollama", "--quant", "f16")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(deploy / "gate.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "22 texts" in done.stdout or "20 texts" in done.stdout


@pytest.mark.slow
def test_a_qlora_run_is_merged_into_what_it_was_trained_beside(deploy, run, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = deploy.export.main([str(run), "--to", "merged", "--merge_into", "nf4"])
    call(deploy.gate.main, run, "--base", "nf4")
    near = {arm["arm"]: arm for arm in json.loads((folder / "gate.json").read_text())["arms"]}["merged"]
    call(deploy.gate.main, run)
    far = {arm["arm"]: arm for arm in json.loads((folder / "gate.json").read_text())["arms"]}["merged"]
    assert near["code"] == 0 and near["kl"] < 5e-3 < far["kl"]
    assert deploy.export.main([str(run), "--to", "merged"]).name == "medical-run-2"  # another model, another folder
    whole = deploy.export.main([str(run), "--to", "merged_4bit"])
    assert json.loads((whole / "merged_4bit" / "config.json").read_text())["quantization_config"]["load_in_4bit"]


# Three ways in which prompt.py encodes: with a template and loss_on, without a template, as pairs. medical's is run below.
ROWS = {
    "alpaca": dict(data="alpaca/sample/alpaca.jsonl", eval_ratio=0.1, split_seed=42),
    "s1_scaling": dict(data="s1_scaling/sample", eval_ratio=0.1, split_seed=42),
    "rlhf_ppo": dict(data="rlhf_ppo/sample/pairs.jsonl", max_pairs=1000, eval_ratio=0.1, split_seed=42),
}


@pytest.mark.slow
def test_the_held_out_rows_of_each_recipe_are_read_again(deploy, modules_of, demo_model, smollm2_tokenizer, tmp_path):
    """The recipe's own data.py and prompt.py give them: what the served template makes of a question is how they begin."""
    from concurrent.futures import ThreadPoolExecutor

    texts = {task: folder_texts(modules_of, task)[1] for task in ROWS}
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda task: rows_again(deploy, task, texts[task], demo_model, tmp_path), ROWS)
    for task, rows in zip(ROWS, found, strict=True):
        check_rows(task, rows, texts[task], smollm2_tokenizer)


def rows_again(deploy, task, texts, demo_model, tmp_path):
    arguments = dict(ROWS[task])
    arguments["data"] = str(ROOT / arguments["data"])
    run = SimpleNamespace(adapter=demo_model, base=demo_model, arguments=arguments, texts=texts, record={})
    return deploy.scores.recipe_rows(run, ROOT / task)


def check_rows(task, found, texts, tokenizer):
    template, _, _ = contract.serving_template(task, texts, tokenizer.chat_template)
    empty = tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=template, tokenize=False,
                                          add_generation_prompt=True)  # fmt: skip
    tail = empty.rstrip().rsplit("\n", 1)[-1]
    assert len(found) >= 10
    for row in found[:10]:
        assert tokenizer.decode(row["input_ids"][: row["answer"]]).rstrip().endswith(tail) and tail
        assert row["input_ids"][-1] == tokenizer.eos_token_id


def test_a_small_update_survives_sixteen_bits(deploy, base, tokenizer, tmp_path):
    """Rounded to nearest, most of it would vanish; rounded at random it is there in the mean, and the same each time."""
    import torch

    run = make_run(tmp_path / "small", base, tokenizer, scale=2e-3)
    adapter = deploy.merged.Adapter(run, base)
    for name in list(adapter.modules)[:3]:
        wide, frozen = adapter.weight(name), deploy.merged.read(adapter.entries[name])
        update, written = wide - frozen, deploy.merged.in_bfloat16(adapter, name)
        kept = {kind: float((each.float() - frozen).flatten() @ update.flatten() / (update * update).sum())
                for kind, each in (("random", written), ("nearest", wide.to(torch.bfloat16)))}  # fmt: skip
        assert abs(kept["random"] - 1) < 0.3 and kept["nearest"] < 0.2, kept
        assert torch.equal(written, deploy.merged.in_bfloat16(adapter, name))
    embedding = "model.embed_tokens.weight"
    assert torch.equal(
        deploy.merged.in_bfloat16(adapter, embedding).float(), deploy.merged.read(adapter.entries[embedding])
    )
