"""The course's pages: their commands parse, their links lead somewhere, both languages say the same, words are one."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_readmes import PARSE, commands_of

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "course"
PAGES = sorted(COURSE.glob("*.md"))
TWINS = [page for page in PAGES if (COURSE / f"{page.stem}.zh-CN.md").is_file()]
LESSONS = ["math_demos", "alpaca", "medical", "domain_mix", "lora_variants", "continual"]
LESSONS += ["rlhf_ppo", "preference", "r1_grpo", "s1_scaling", "vl_insurance", "deploy"]


def module(name):
    spec = importlib.util.spec_from_file_location(f"course_{name}", COURSE / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def tables(text):
    """[(header's cells, [rows' cells])] of a page's tables."""
    found = re.findall(r"^(\|[^\n]*)\n\|[-:| ]+\|\n((?:\|[^\n]*\n?)+)", text, re.MULTILINE)
    return [(cells(header), [cells(line) for line in body.splitlines()]) for header, body in found]


def inline_commands(text):
    """(script from the root, arguments) of the python commands in a page's `code`; a `cd X` counts to the next heading."""
    found = []
    for section in re.split(r"^#+ .*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE):
        where = ""
        for code in re.findall(r"`([^`]+)`", section):
            code = " ".join(code.split())
            where = change[1] if (change := re.match(r"cd (\w+) && ", code)) else where
            for script, argv in commands_of(code):
                inside = where and not change and (ROOT / where / script).is_file()
                found.append((f"{where}/{script}" if inside else script, argv))
    return found


def refused(commands):
    """What the real parsers of the scripts refuse. commands: (script from the root, arguments)."""
    by_script, wrong = {}, []
    for script, argv in commands:
        assert (ROOT / script).is_file(), f"no such script: {script} {' '.join(argv)}"
        if argv not in by_script.setdefault(script, []):
            by_script[script].append(argv)
    for script, given in by_script.items():
        done = subprocess.run(
            [sys.executable, "-c", PARSE],
            cwd=(ROOT / script).parent,
            input=json.dumps([Path(script).stem, given]),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"
        wrong += [[script, *each] for each in json.loads(done.stdout.splitlines()[-1])]
    return wrong


def settings(text):
    """(script, arguments) of the table of settings: its flags, given to each of the scripts in its last column."""
    made = []
    for header, rows in tables(text):
        if header[-1] in ("in", "用于"):
            for row in rows:
                scripts = re.findall(r"\]\(\.\./([\w/]+\.py)\)", row[2])
                codes = [code for code in re.findall(r"`([^`]+)`", row[1]) if code.startswith("--")]
                assert scripts and codes, row
                made += [(script, shlex.split(code)) for script in scripts for code in codes]
    return made


def test_every_command_and_every_setting_goes_through_the_real_parser():
    texts = [page.read_text("utf-8") for page in PAGES]
    commands, flags = ([pair for text in texts for pair in find(text)] for find in (inline_commands, settings))
    assert len(commands) > 150 and len(flags) > 160
    assert not refused(commands + flags)


def test_the_check_of_commands_can_fail():
    text = "`cd alpaca && python train.py --demo`, then `python infer.py --no_such_flag 1`\n# next\n`python train.py`"
    assert inline_commands(text) == [
        ("alpaca/train.py", ["--demo"]),
        ("alpaca/infer.py", ["--no_such_flag", "1"]),
        ("train.py", []),  # a heading ends the cd
    ]
    ((script, argv, why),) = refused(inline_commands(text)[:2])
    assert (script, argv) == ("alpaca/infer.py", ["--no_such_flag", "1"]) and "no_such_flag" in why


# What the issue names, and the files of the course's public copies.
OLD = re.findall(
    r"\S+",
    """PatchFastRL for_inference sft_trainer.py sft_trainer_01.py sft_trainer_02.py sft_trainer_03.py train_reward train_ppo train_grpo
data_integration data_set_generation Qwen_finetuning.py inference.py chat.py ollama_chat.py 汽车保险承保专家 MAX_TOKENS_THINKING NUM_IGNORE
Qwen2_5_(7B)_Alpaca.py Qwen2_5_(7B)_medical.py Qwen2_5_(7B)_R1.py qwen_vl_car_insurance_train.py image_svd.py ALS.py dataset_legal.py
model_comparison_eval.py qwen-vl-train.xlsx my_dataset.json mixed_finetune_dataset.jsonl dpo_zh_500.jsonl sft_data.json grpo_saved_lora
fast_inference gpu_memory_utilization num_generations max_prompt_length load_in_4bit max_seq_length save_pretrained_gguf merged_16bit
push_to_hub_merged neftune_noise_alpha DataCollatorForCompletionOnlyLM UnslothVisionDataCollator finetune_vision_layers block_size""",
)


@pytest.mark.parametrize("page", ["migration.md", "migration.zh-CN.md"])
def test_the_old_course_is_in_the_migration_table(page):
    text = (COURSE / page).read_text("utf-8")
    assert not [name for name in OLD if name not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            wrong.append(target)
        elif anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if anchor not in anchors and f'id="{anchor}"' not in file.read_text("utf-8"):
                wrong.append(target)
    assert not wrong


def test_every_page_has_a_twin_of_the_same_shape():
    """Tables with as many rows, the same commands and the same papers in both languages; the glossary is both in one."""
    assert {page.stem for page in PAGES if "zh-CN" not in page.name} - {page.stem for page in TWINS} == {"glossary"}
    for page in TWINS:
        one, two = (file.read_text("utf-8") for file in (page, COURSE / f"{page.stem}.zh-CN.md"))
        assert one.count("\n## ") == two.count("\n## ") or page.stem == "README", page.name
        assert [len(rows) for _, rows in tables(one)] == [len(rows) for _, rows in tables(two)], page.name
        scripts = [sorted(script for script, _ in inline_commands(text)) for text in (one, two)]
        assert scripts[0] == scripts[1], page.name
        assert settings(one) == settings(two), page.name
        papers = [sorted(set(re.findall(r"arxiv\.org/abs/([\d.]+)", text))) for text in (one, two)]
        assert papers[0] == papers[1], page.name


def prose(text):
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_the_readmes_are_short_and_walk_the_whole_path():
    english, chinese = ((COURSE / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert len(prose(english).split()) <= 900
    assert len(re.sub(r"\s", "", prose(chinese))) <= 1800
    for text in (english, chinese):
        path = next(rows for header, rows in tables(text) if len(header) == 4)
        assert [re.match(r"\[(\w+)\]", row[1])[1] for row in path] == LESSONS
    for name in ("plans.md", "plans.zh-CN.md"):
        text = (COURSE / name).read_text("utf-8")
        sections = re.findall(r"^## \d+\. (\w+)[:：].*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert sections == LESSONS
        assert text.count("**90 ") == len(LESSONS) + 1 and len(re.findall(r"\*\*(Ask|问)\*\*", text)) == len(LESSONS)


def glossary():
    """[(English, Chinese, folders that teach it, Chinese words not to be used)]."""
    made = []
    for _, rows in tables((COURSE / "glossary.md").read_text("utf-8")):
        for english, chinese, meaning, 意思, where, wrong in rows:
            assert english and chinese and meaning.endswith(".") and 意思.endswith("。"), english
            folders = re.findall(r"\[(\w+)\]", where)
            made.append((english, chinese, folders, [word for word in wrong.split("、") if word]))
    return made


GLOSSARY = glossary()


def chinese_pages(folder):
    return (
        [COURSE / "README.zh-CN.md", *COURSE.glob("*.zh-CN.md")]
        if folder == "course"
        else sorted((ROOT / folder).glob("*.zh-CN.md"))
    )


@pytest.mark.parametrize("folder", [*LESSONS, "course"])
def test_chinese_pages_use_none_of_the_words_that_the_glossary_rules_out(folder):
    wrong = []
    for page in chinese_pages(folder):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            wrong += [f"{page.relative_to(ROOT)}:{number}: {word}, not {chinese}"
                      for _, chinese, _, words in GLOSSARY for word in words if word in line]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_terms_are_used_where_the_glossary_says_that_they_are_taught():
    assert len(GLOSSARY) > 50 and len({chinese for _, chinese, *_ in GLOSSARY}) == len(GLOSSARY)
    missing = []
    for english, chinese, folders, _ in GLOSSARY:
        text = "".join(page.read_text("utf-8") for folder in folders for page in chinese_pages(folder))
        if chinese not in text:
            missing.append(f"{chinese} ({english}): not in {', '.join(folders)}")
    assert not missing, "\n".join(missing)


def test_the_terms_of_a_chinese_course_are_in_the_glossary():
    assert {"低秩", "梯度累积", "超参数", "提示词", "适配器", "灾难性遗忘", "幻觉"} <= {row[1] for row in GLOSSARY}


def test_the_tables_of_costs_are_what_the_script_prints():
    costs = module("costs")
    for name, text in costs.pages().items():
        assert (COURSE / name).read_text("utf-8") == text, f"python course/costs.py --write  ({name} is out of date)"


def test_costs_name_what_was_measured_and_nothing_else():
    costs = module("costs")
    times = costs.measured()
    assert {card for _, card, *_ in times} <= {"H100", "H200"} and len(times) > 8
    for _, _, seconds, _, file in times:
        assert 0 < seconds < 60 and (ROOT / file).is_file()
    page = (COURSE / "costs.md").read_text("utf-8")
    header, rows = next(table for table in tables(page) if table[0][1] == "steps")
    assert [row[0] for row in rows] == list(costs.STEPS)
    computed = {row[0]: row[2:6] for row in rows}  # cards that nobody ran: each cell says so, or is a dash
    assert all(cell == "–" or cell.startswith("≈ ") for cells in computed.values() for cell in cells)
    assert [name for name, found in computed.items() if "–" in found] == ["rlhf_ppo"]  # no formula for float32 on a T4
    paid = dict(zip(header, next(row for row in rows if row[0] == "r1_grpo"), strict=True))
    seconds = next(row[2] for row in times if row[:2] == ("r1_grpo", "H100"))
    assert paid[f"H100 at {costs.PRICES['H100']}"] == f"{seconds * 250 / 3600 * costs.PRICES['H100']:.2f}"


def test_computed_seconds_are_a_roofline_that_meets_what_is_known():
    costs = module("costs")
    by = {row[:2] + (row[3],): row[2] for row in costs.measured()}
    for lesson, base, what in (("alpaca", "H100", "8 rows"), ("r1_grpo", "H100", "24 x 512 tokens, vLLM")):
        same, _ = costs.computed(lesson, by[lesson, base, what], base, base)
        assert same == pytest.approx(by[lesson, base, what])  # scaled to the card it was measured on
    least, most = costs.computed("r1_grpo", by["r1_grpo", "H100", "24 x 512 tokens, vLLM"], "H100", "H200")
    assert least == pytest.approx(
        by["r1_grpo", "H200", "24 x 512 tokens, vLLM"], rel=0.1
    )  # more bandwidth, as measured
    least, most = costs.computed("alpaca", by["alpaca", "H100", "8 rows, course.yaml"], "H100", "T4")
    assert least < 447 / 60 < most  # Unsloth's public notebook on a T4
    assert costs.about(0.123, 9.87) == "≈ 0.12–9.9" and costs.about(12.3, 123) == "≈ 12–123"


def gigabytes(lesson, *flags):
    """(needed, LoRA's part) in GB of a step on a 16 GB card, as train.py --estimate prints them."""
    command = [sys.executable, ROOT / lesson / "train.py", "--estimate", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MODELS_DIR": os.devnull})
    row = re.search(r"^  16 +\w+ +([\d.]+) +[\d.]+ +([\d.]+)", done.stdout, re.MULTILINE)
    return float(row[1]), float(row[2])


@pytest.mark.parametrize("end", ["", ".zh-CN"])
def test_the_answers_about_memory_are_what_estimate_says(end):
    faq, readme = ((COURSE / f"{name}{end}.md").read_text("utf-8") for name in ("faq", "README"))
    whole, adapter = gigabytes("medical", "--backend", "unsloth")
    saved = adapter - gigabytes("medical", "--backend", "unsloth", "--lora_r", "8")[1]
    for text in (faq, readme):
        assert f"{whole:g}" in text and f"{saved:.1f}" in text
    rl = [gigabytes("r1_grpo", "--quantization", "4bit", *flags)[0] for flags in ((), ("--num_generations", "4"))]
    assert rl[0] == rl[1] and f"{rl[0]:g} GB" in faq
    micro = ["--num_generations", "4", "--per_device_train_batch_size", "4"]
    smaller = gigabytes("r1_grpo", "--quantization", "4bit", *micro)[0]
    assert f"{smaller:g} GB" in faq
    header, rows = next(table for table in tables((COURSE / f"costs{end}.md").read_text("utf-8")) if len(table[0]) == 4)
    fit = [row[1] for row in rows if re.match(r"[\d.]+ GB", row[1])]
    assert (len(fit), len(rows)) == (6, 7) and ("Six of the seven" in readme or "七课有六课" in readme)


def test_prices_are_the_readers():
    def run(*argv):
        return subprocess.run([sys.executable, COURSE / "costs.py", *argv], capture_output=True, text=True)

    assert "H100 at 3.5 |" in run("--price", "H100=3.5").stdout
    for given in ("H100", "B200=3", "H100=cheap", "H100=-1"):
        done = run("--price", given)
        assert done.returncode == 1 and "expected CARD=NUMBER" in done.stderr and "Traceback" not in done.stderr
    assert run("--write", "--price", "H100=3").returncode == 1


def test_the_tree_is_what_the_script_draws():
    tree = module("tree")
    for name, drawn in tree.pictures().items():
        assert (COURSE / "figures" / name).read_text("utf-8") == drawn, "python course/tree.py"
        for folder in LESSONS[1:8]:
            assert folder in drawn
