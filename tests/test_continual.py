"""continual/: documents read, deduplicated and packed; words trained and merged; runs resumed, measured, compared."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
FILES = ("prompt", "data", "packs", "measure", "train", "sft", "merge", "infer", "evaluate", "compare", "world")
SAMPLE = ROOT / "continual" / "sample"


@pytest.fixture(scope="module")
def task(modules_of):
    """The folder's modules. They stay in sys.modules while these tests run: some import others inside functions."""
    before = {name: sys.modules.get(name) for name in FILES}
    made = modules_of("continual", FILES)
    sys.modules.update(vars(made))
    yield made
    for name in FILES:
        sys.modules.pop(name, None)
        if before[name]:
            sys.modules[name] = before[name]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two random models of 2 layers: with tied words, and with an lm_head of its own."""
    import faults
    import torch
    from transformers import AutoModelForCausalLM

    folder, made = tmp_path_factory.mktemp("tiny"), {}
    made["tied"] = faults.tiny_model(folder / "tied")
    model = AutoModelForCausalLM.from_pretrained(made["tied"])
    model.get_input_embeddings().weight.data *= 20  # a random model is near-uniform: nothing could be told apart
    model.save_pretrained(made["tied"])
    made["untied"] = faults.tiny_model(folder / "untied")
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    head = torch.nn.Linear(16, model.config.vocab_size, bias=False)
    model.lm_head = head
    model.save_pretrained(made["untied"])
    return made


# -- documents


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.write_bytes(content) if isinstance(content, bytes) else file.write_text(content, "utf-8")
    return folder


def test_text_files_are_documents_in_whatever_encoding(task, tmp_path):
    law = "第一条　为了规范图书借阅活动，方便读者，制定本条例。第二条　本条例适用于示例市的公共图书馆，借期三十日。"
    folder = write(
        tmp_path / "a", a__txt=law.encode("gb18030"), b__md="# A title\n\nA text of its own.\n", empty__txt=" \n"
    )
    texts, report = task.data.read_documents(folder)
    assert texts == [law, "# A title\n\nA text of its own."]
    assert (report["rows"], report["kept"], report["dropped"]) == (3, 2, {"empty": 1})
    assert "empty.txt" in "".join(report["problems"])
    assert task.data.read_documents(folder / "a.txt")[0] == [law]


def test_what_cannot_be_read_is_named_by_file_and_row(task, tmp_path):
    lines = ['{"text": "one good document"}', '{"text": 7}', '{"body": "x"}', "{broken", '{"text": "a <|im_end|> b"}']
    file = write(tmp_path, x__jsonl="\n".join(lines)) / "x.jsonl"
    texts, report = task.data.read_documents(file)
    assert texts == ["one good document"]
    assert sum(report["dropped"].values()) == 4 and report["kept"] + 4 == report["rows"]
    said = "\n".join(report["problems"])
    for number, what in ((2, "int"), (3, "not there"), (4, "column"), (5, "control token")):
        assert f"line {number}" in said and what in said, said
    with pytest.raises(SystemExit, match="both text files and x.jsonl"):
        task.data.read_documents(write(tmp_path, y__txt="text"))
    with pytest.raises(SystemExit, match="no such file"):
        task.data.read_documents(tmp_path / "none.txt")
    with pytest.raises(SystemExit, match="no column 'text'"):
        task.data.read_documents(write(tmp_path / "b", z__jsonl='{"body": "x"}\n') / "z.jsonl")


def test_a_pdf_named_txt_is_refused_in_one_line(task, tmp_path):
    file = write(tmp_path, x__txt=b"%PDF-1.7\n\xff\xfe\x00\x00\x9d\x81\x8d" + bytes(range(256)) * 4) / "x.txt"
    with pytest.raises(SystemExit) as end:
        task.data.read_documents(file)
    assert "x.txt" in str(end.value) and "Traceback" not in str(end.value)


def test_reprints_are_dropped_and_named_and_other_documents_stay(task, tmp_path):
    draw = random.Random(0)
    words = [f"word{n}" for n in range(400)]
    texts = [" ".join(draw.choices(words, k=80)) for _ in range(30)]
    near = texts[3].replace(texts[3].split()[40], "changed", 1)  # five of 76 shingles are others
    half = " ".join(texts[5].split()[:40] + texts[6].split()[:40])  # shares half with each: its own document
    law = "第三条　年满六周岁的居民可以办理借书证。办理借书证不收取费用。第四条　借书证遗失的，读者应当在七日内向图书馆报告，图书馆应当补发。逾期归还的，按每册每日一角计收费用，但不得超过图书的定价。"
    everything = [*texts, near, texts[9], half, law, law.replace("七日", "八日"), law[::-1]]
    kept, twice = task.data.distinct(everything)
    assert [(at, first) for at, first, _ in twice] == [(30, 3), (31, 9), (34, 33)]
    assert twice[1][2] == 1 and 0.8 <= twice[0][2] < 1
    assert kept == [at for at in range(len(everything)) if at not in (30, 31, 34)]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in everything), "utf-8")
    _, report = task.data.read_documents(file)
    assert report["dropped"] == {"near-duplicate": 3} and report["kept"] == len(kept) == len(report["places"])
    assert "line 31: " in report["problems"][0] and "line 4;" in report["problems"][0]


def test_the_sample_is_what_world_py_writes_and_loses_what_its_readme_says(task, tmp_path, capsys):
    task.world.main(["--out", str(tmp_path)])
    for name in ("harbour.jsonl", "everyday.jsonl", "chats.jsonl"):
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name
    _, report = task.data.read_documents(SAMPLE / "harbour.jsonl")
    assert (report["rows"], report["kept"]) == (128, 121)
    assert report["dropped"] == {"empty": 1, "missing": 1, "near-duplicate": 5}
    task.data.main(["--check", str(SAMPLE / "harbour.jsonl")])
    said = capsys.readouterr().out
    assert "5 near-duplicate" in said and "line 122: " in said


# -- tokens


def test_packing_puts_every_row_once_where_it_fits(task):
    draw = random.Random(1)
    lengths = [draw.randint(1, 100) for _ in range(500)]
    bins = task.packs.pack(lengths, 100)
    assert sorted(at for inside in bins for at in inside) == list(range(500))
    sums = [sum(lengths[at] for at in inside) for inside in bins]
    assert max(sums) <= 100 and sum(sums) / len(sums) > 97
    assert task.packs.pack([60, 50, 40, 50], 100) == [[0, 2], [1, 3]]
    assert bins == task.packs.pack(lengths, 100)


def test_long_documents_are_cut_and_nothing_is_lost(task):
    documents = [list(range(25)), list(range(10)), [7]]
    made, cut = task.packs.pieces(documents, 10)
    assert (list(map(len, made)), cut) == ([10, 10, 5, 10, 1], 1)
    assert made[0] + made[1] + made[2] == documents[0]
    said = task.packs.told(documents, 10)
    assert said == "36 tokens in 3 documents; 1 over --max_length 10: cut into 3 pieces; 4 sequences, 90% full"


def test_replay_is_the_share_that_was_asked_for_and_the_same_each_time(task):
    rows = [([n] * 10, [n] * 10) for n in range(40)]
    taken = task.packs.replayed(rows, 250, 7)
    assert len(taken) == 25 == len({row[0][0] for row in taken}) and taken == task.packs.replayed(rows, 250, 7)
    assert taken != task.packs.replayed(rows, 250, 8)
    often = [
        row[0][0] for row in task.packs.replayed(rows, 1000, 7)
    ]  # more than there is: each again, none thrice first
    assert len(often) == 100 and {often.count(n) for n in range(40)} == {2, 3}
    assert task.packs.replayed(rows, 0, 7) == [] == task.packs.replayed([], 100, 7)


def losses(model, batch):
    import torch

    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    return each, labels[:, 1:] != -100


@pytest.fixture(scope="module")
def documents(task, tiny):
    from common import models

    tokenizer = models.load_tokenizer(tiny["tied"])
    texts = [
        "A barge shall moor.",
        "The lamp of a tug is blue, and its fee two crowns a day.",
        "No.",
        "Wind, and rain again.",
    ]
    return tokenizer, task.prompt.document_ids(tokenizer, texts)


def test_a_documents_loss_and_gradient_are_the_same_packed_and_alone(task, tiny, documents):
    """The boundary of a document: what stands before it in the sequence is not seen."""
    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

    tokenizer, rows = documents
    model = AutoModelForCausalLM.from_pretrained(tiny["tied"]).eval()
    packed = task.packs.sequences([(ids, ids) for ids in rows], [[1, 3], [0, 2]])
    batch = task.packs.collator(DataCollatorForSeq2Seq(tokenizer))(list(packed))
    each, counted = losses(model, batch)
    each[counted].sum().backward()
    together = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    for at, row in enumerate((1, 3, 0, 2)):
        ids = torch.tensor([rows[row]])
        alone, _ = losses(model, {"input_ids": ids, "labels": ids})
        assert torch.allclose(each[at][counted[at]], alone[0], atol=1e-5), row
        alone.sum().backward()
    assert torch.allclose(together, model.get_input_embeddings().weight.grad, atol=1e-4)
    ids = torch.tensor([rows[1] + rows[3]])  # without boundaries the second one's loss is another: the test can fail
    joined, _ = losses(model, {"input_ids": ids, "labels": ids})
    alone, _ = losses(model, {"input_ids": torch.tensor([rows[3]]), "labels": torch.tensor([rows[3]])})
    assert (joined[0][-len(rows[3]) + 1 :] - alone[0]).abs().max() > 0.01


def test_on_a_card_positions_begin_anew_and_no_document_foretells_the_next(task, documents):
    from common.speed import packing

    tokenizer, rows = documents
    packed = task.packs.sequences([(ids, ids) for ids in rows], [[1, 3], [0, 2]])
    batch = task.packs.collator(packing.collator(tokenizer, True, "hf"))(list(packed))
    order = [rows[at] for at in (1, 3, 0, 2)]
    assert batch["input_ids"][0].tolist() == sum(order, [])
    assert batch["position_ids"][0].tolist() == sum((list(range(len(ids))) for ids in order), [])
    assert batch["labels"][0].tolist() == sum(([-100, *ids[1:]] for ids in order), [])
    ends = [0]
    for ids in order:
        ends.append(ends[-1] + len(ids))
    assert batch["cu_seq_lens_q"].tolist() == ends


def test_questions_are_asked_in_the_template_and_a_base_without_one_goes_on(task, tiny):
    from common import contract, models

    tokenizer = models.load_tokenizer(tiny["tied"])
    prompt = task.prompt
    assert prompt.template_of(tokenizer) == prompt.CHAT
    asked = prompt.prompt_ids(tokenizer, [{"question": "Why?"}])[0]
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(asked) == text
    assert (
        contract.probe_ids(tokenizer, contract.serving_template("continual", prompt.CHAT, tokenizer.chat_template)[0])[
            0
        ]
        == (prompt.prompt_ids(tokenizer, [{"question": contract.PROBES[0][0]["content"]}])[0])
    )
    (ids,), (labels,) = prompt.encode(tokenizer, [{"question": "Why?", "answer": "So."}])
    kept = [token for token in labels if token != -100]
    assert tokenizer.decode(kept) == "So.<|im_end|>" and ids[: len(asked)] == asked and len(ids) == len(labels)
    tokenizer.chat_template = None
    assert prompt.template_of(tokenizer) == prompt.TEXT
    plain = prompt.prompt_ids(tokenizer, [{"question": "A barge {x}"}], prompt.TEXT)[0]
    assert tokenizer.decode(plain) == "A barge {x}"
    template = contract.serving_template("continual", prompt.TEXT, None)[0]
    assert (
        contract.probe_ids(tokenizer, template)[1]
        == prompt.prompt_ids(tokenizer, [{"question": contract.PROBES[1][0]["content"]}], prompt.TEXT)[0]
    )
    assert (
        prompt.end_of_document(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>") != tokenizer.eos_token_id
    )


@pytest.mark.parametrize(
    "ids, text, kept",
    [([5, 2], "A fox is red.", True), ([5, 6], "A fox is red", False), ([2], "", False), ([], "", False),
     ([5, 2], "A fox.<|im_start|>user", False), ([5, 2], "A fox.\nassistant\nA fox.", False),
     ([5, 2], "The user asked.", True)],
)  # fmt: skip
def test_what_counts_as_chat_form(task, ids, text, kept):
    assert task.measure.in_chat_form(ids, text, 2) is kept


# -- runs


def flags(tiny, out, which="tied", *more):
    small = [
        "--model",
        tiny[which],
        "--max_steps",
        4,
        "--save_steps",
        2,
        "--eval_steps",
        2,
        "--eval_rows",
        3,
        "--ask",
        2,
    ]
    small += ["--max_new_tokens", 2, "--lora_r", 2, "--lora_alpha", 2, "--learning_rate", 1e-2, "--max_length", 400]
    small += ["--per_device_train_batch_size", 2]
    return ["--demo", *map(str, small), "--output_dir", str(out), *map(str, more)]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(Path(folder) / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_run_is_measured_resumed_bit_by_bit_gone_on_with_and_asked(task, tiny, tmp_path, capsys):
    """With the words trained: their optimizer has two groups, and a checkpoint holds both matrices."""
    whole = task.train.main(flags(tiny, tmp_path / "whole", "tied", "--embeddings"))
    record = json.loads((whole / "run.json").read_text())
    assert record["status"] == "finished" and record["arguments"]["replay"] == 0.1
    for name in ("data", "general", "chats"):
        assert record["before"][name]["loss"] > 0 and record["after"][name]["rows"] >= 3
    assert record["after"]["data"]["loss"] < record["before"]["data"]["loss"] - 0.02
    assert 0 <= record["after"]["chat_form"] <= 1 and len(record["after"]["answers"]) == 2
    assert (whole / "loss.png").is_file() and (whole / "serving.json").is_file() and (whole / "heldout.jsonl").is_file()
    logs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {name for log in logs for name in log} >= {"eval_data_loss", "eval_general_loss", "eval_chats_loss"}
    said = capsys.readouterr().out
    assert "replay: 10" in said or "replay: 9" in said
    with pytest.raises(SystemExit) as end:
        task.train.main(flags(tiny, tmp_path / "cut", "tied", "--embeddings", "--stop_after", 2))
    assert end.value.code == 143
    cut = task.train.main(flags(tiny, tmp_path / "cut", "tied", "--embeddings"))
    one, other = weights(whole), weights(cut)
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert any("embed_tokens" in name for name in one)

    tuned = task.sft.main([*flags(tiny, tmp_path / "sft"), "--start", str(whole)])
    after = weights(tuned)
    moved = {name for name in one if not (one[name] == after[name]).all()}
    assert moved and all("lora_" in name for name in moved)
    task.evaluate.main(["--adapter", str(tuned), "--limit", "2", "--max_new_tokens", "2"])
    found = json.loads((tuned / "evaluation_results" / "metrics.json").read_text())
    assert found["base"]["data"]["loss"] != found["tuned"]["data"]["loss"]
    assert len((tuned / "evaluation_results" / "predictions.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    task.infer.main(["--adapter", str(tuned), "--question", "Why?", "--compare", "--max_new_tokens", "3"])
    assert "-- base" in (said := capsys.readouterr().out) and "-- tuned" in said
    task.infer.main(["--adapter", str(whole), "--text", "A barge", "--max_new_tokens", "3"])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_trained_words_have_a_tenth_of_the_rate_and_merging_gives_the_trained_model(
    task, tiny, tmp_path, which, monkeypatch
):
    import torch
    from transformers import AutoModelForCausalLM

    from common import adapters

    made, real = {}, task.train.optimizer_of

    def optimizer_of(model, config):
        made["groups"] = (optimizer := real(model, config)).param_groups
        made["sizes"] = [sum(each.numel() for each in group["params"]) for group in made["groups"]]
        made["rates"] = [group["lr"] for group in made["groups"]]
        return optimizer

    monkeypatch.setattr(task.train, "optimizer_of", optimizer_of)
    # The frozen weights in 16 bits and the loss in chunks, as on a card.
    half = ["--bf16", "true", "--loss_type", "chunked_nll"] if which == "untied" else []
    run = task.train.main(flags(tiny, tmp_path / "run", which, "--embeddings", "--tokens", 1500, *half))
    assert json.loads((run / "run.json").read_text())["steps"] == 2  # of two sequences, nearly 400 tokens each
    words = AutoModelForCausalLM.from_pretrained(tiny[which]).get_input_embeddings().weight
    assert made["rates"] == pytest.approx([1e-2, 1e-3])
    assert made["sizes"][1] == words.numel() * (1 if which == "tied" else 2)
    error = task.merge.merge(run, tiny[which], tmp_path / "merged", "float32")
    assert error < 1e-5
    trained = adapters.attach(AutoModelForCausalLM.from_pretrained(tiny[which]), run).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(3, 40)[None]
    assert torch.allclose(trained(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)
    assert (merged.get_input_embeddings().weight - words).abs().max() > 1e-3
    assert merged.config.tie_word_embeddings == (which == "tied")


def peak_of(model):
    """Bytes of the largest moment of two steps of two micro-batches, weights and optimizer included."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

    class Live(TorchDispatchMode):
        known, now, peak = {}, 0, 0

        def add(self, tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata)

        def gone(self, name):
            self.now -= self.known.pop(name)

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for each in tree_leaves(made):
                self.add(each) if isinstance(each, torch.Tensor) else None
            return made

    _patch_chunked_ce_lm_head(model.get_base_model(), chunk_size=4)  # of TRL's loss, with logits that hardly count
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)
    ids, live = torch.arange(3, 19)[None], Live()
    for each in model.parameters():
        live.add(each)
    with live:
        for _ in range(2):
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize("tied", [True, False])
def test_what_trained_words_take_is_what_estimate_counts(task, tied, tmp_path):
    """On a CPU, with words that outweigh all else: with --embeddings minus without it, measured and by the formula."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from common import models
    from common.speed import fit

    shape = dict(vocab_size=4000, hidden_size=256, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied)).bfloat16().save_pretrained(tmp_path)
    measured, counted = [], []
    for embeddings in (False, True):
        args = SimpleNamespace(
            quantization="none", backend="hf", max_length=64, embeddings=embeddings, lora_r=2, lora_alpha=2,
            lora_dropout=0.0, lora_target_modules=["q_proj"], fused_lora=False, packing=False,
        )  # fmt: skip
        model = task.train.load_model(args, SimpleNamespace(seed=1, bf16=True, fp16=False), tmp_path)
        models.widen_adapters(model)
        assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
        measured.append(peak_of(model))
        more = dict(logits=256 * 12) | task.packs.of_words(args, tmp_path)
        parts = fit.needs(fit.shape_of(tmp_path), 16, 2, False, True, **more)
        counted.append(parts["LoRA"] + parts["at work"] - fit.shape_of(tmp_path)["vocabulary"] * 256 * 12)
    assert counted[1] - counted[0] == pytest.approx(measured[1] - measured[0], rel=0.03)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_in_chunks_reaches_trained_words(tied):
    """It reads lm_head's weight past the module: PEFT has to hand it the trained one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

    shape = dict(vocab_size=100, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1)
    found, ids = [], torch.arange(3, 60)[None]
    for chunked in (False, True):
        torch.manual_seed(1)
        words = dict(modules_to_save=["embed_tokens"] + ([] if tied else ["lm_head"]), ensure_weight_tying=tied)
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **words))
        for name, each in model.named_parameters():
            if "modules_to_save" in name:  # as in training: another one than the frozen one
                each.data += torch.randn_like(each)
        if chunked:
            _patch_chunked_ce_lm_head(model.get_base_model(), chunk_size=8)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        grads = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
        found.append((loss, grads))
    (one, grads), (other, same) = found
    assert torch.allclose(one, other, rtol=1e-5) and sum("modules_to_save" in name for name in grads) == 2 - tied
    assert all(torch.allclose(grads[name], same[name], atol=1e-5) for name in grads if "modules_to_save" in name)


def test_estimate_counts_the_words(task, capsys):
    def needs(*more):
        task.train.main(["--estimate", "--model", "Qwen/Qwen2.5-7B", *more])
        return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:2].isdigit()]

    for plain, words in zip(needs(), needs("--embeddings"), strict=True):
        assert float(words[4]) - float(plain[4]) == pytest.approx(16 * 2 * 152_064 * 3584 / 1e9, abs=0.11)
    assert needs("--embeddings")[2][1] == "no"  # not on a card of 24 GB, where LoRA alone fits


def test_lora_in_tied_words_is_refused_by_merge_since_its_logits_would_be_others(task, tiny, tmp_path):
    """The trap: what goes in was trained, and merging moves what comes out as well. Untied, it can be merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for which in ("tied", "untied"):
        model = AutoModelForCausalLM.from_pretrained(tiny[which])
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "embed_tokens"]))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / which, save_embedding_layers=False)
        if which == "untied":
            assert task.merge.merge(tmp_path / which, tiny[which], tmp_path / "merged", "float32") < 1e-5
            continue
        with pytest.raises(SystemExit, match="cannot be merged: .*one matrix"):
            task.merge.merge(tmp_path / which, tiny[which], tmp_path / "out", "float32")
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "argv, says",
    [(["--replay", "1.5"], "--replay: expected a number from 0 to below 1, got 1.5"), (["--replay", "0.1"], "needs --general or --chats"),
     (["--embeddings", "--backend", "unsloth"], "backend hf")],
)  # fmt: skip
def test_flags_that_cannot_be(task, argv, says):
    if "--embeddings" in argv:
        argv = [*argv, "--replay", "0"]
    with pytest.raises(SystemExit, match=says):
        task.train.main(argv)


@pytest.mark.slow
def test_comparing_writes_as_it_goes_and_goes_on(task, tiny, tmp_path, capsys):
    small = [
        "--demo",
        "--model",
        tiny["tied"],
        "--base",
        tiny["untied"],
        "--seeds",
        2,
        "--shares",
        0,
        0.5,
        "--ways",
        "chat",
        "base",
    ]
    small += ["--max_new_tokens", 2, "--epochs", 1, "--lora_r", 2, "--max_length", 400, "--out", tmp_path / "out"]
    for name, source in (("data", "harbour"), ("general", "everyday"), ("chats", "chats")):
        lines = (SAMPLE / f"{source}.jsonl").read_text("utf-8").splitlines()[:12]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
        small += [f"--{name}", tmp_path / f"{name}.jsonl"]
    small = list(map(str, small))
    task.compare.main([*small, "--seconds", "1"])  # the first one begins in any case
    lines = (tmp_path / "out" / "compare.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 10
    task.compare.main(small)
    rows = [json.loads(line) for line in (tmp_path / "out" / "compare.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in lines] == rows[: len(lines)]
    assert len(rows) == len({(row["way"], row["replay"], row["seed"]) for row in rows}) == 2 * 5
    assert (tmp_path / "out" / "compare.png").is_file()
    said = capsys.readouterr().out
    assert "base -> CPT -> SFT" in said and "±" in said


def test_differences_are_paired_by_seed(task):
    rows = [dict(way="chat -> CPT", replay=share, seed=seed, after=dict(data=2.0**seed * (10 if not share else 1), general=3.0 + seed % 2,
            chats=5.0 + seed - 4 * share + share * seed / 10, chat_form=0.5 + share)) for share in (0.0, 0.5) for seed in (1, 2, 3)]  # fmt: skip
    header, lines = task.compare.table(rows, rows[0]["after"])
    assert header[3:] == ("domain perplexity", "general perplexity", "loss of answers", "in chat form")
    assert lines[2][3] == "4.00 (x 0.1, 0.1 to 0.1)"  # a tenth for each seed, whatever the seeds' own spread
    assert "no difference shown" in lines[2][4]
    assert lines[2][5] == "5.10 (-1.90 ± 0.12)"  # gaps -1.95, -1.90, -1.85
    assert lines[2][6] == "100% (+50% ± 0%)"
