# Generated from common/contract.py: edit that file, then run `make sync`.
"""What a chat API has to know to ask a trained model as it was trained: serving.json and serving_template.jinja.

A tokenizer keeps the chat template of its base model. Every chat API (llama.cpp, Ollama, vLLM) renders that one, so an
adapter that learned "### Question ... ### Answer" is asked in ChatML, a prompt that it never saw. The template written
here gives the token ids of the recipe's prompt.py. Built from what lies in a run's folder, so old runs get it as well.
"""

import hashlib
import json
import math
from pathlib import Path

from common import screen
from common.files import read_json, replace_text, write_json
from common.paths import TASK_DIR, command
from common.tokens import labels_of

SERVING, TEMPLATE, HELD_OUT = "serving.json", "serving_template.jinja", "heldout.jsonl"
KEPT = 48  # held-out rows, as token ids: what an exported file is compared on where the data is not at hand
PLAIN = "You are a helpful assistant."  # what the recipes say whose prompt.py saves no system text
R1 = """Think before you answer. Write in this form, and nothing else:
<reasoning>
your steps
</reasoning>
<answer>
the number alone
</answer>"""
OLD = {"r1_grpo": R1}  # of runs that did not save it yet
SEVERAL_TURNS = {"domain_mix", "preference", "rlhf_ppo"}  # asked with history, in training or by their own chat.py
KINDS = {True: "plain", "gaussian": "plain", "orthogonal": "plain", "eva": "plain", "mica": "plain"}
MERGED_ONLY = {"pissa", "olora"}  # A and B beside other base weights, which PEFT computes again at loading

# One conversation each; what prompt.py makes of it is what a server has to make of it.
PROBES = (
    [{"role": "user", "content": "First line.\nSecond line:\n\n\tindented"}],
    [{"role": "user", "content": "Braces {question} {{ x }} {% if y %} {0} and 100%?"}],
    [{"role": "user", "content": 'Three quotes """ and \'one\' \\n backslash'}],
    [{"role": "user", "content": "高血压患者能吃党参吗？🙂 ½ café"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Who wrote Faust?"}],
    [{"role": "user", "content": "Name a metal."}, {"role": "assistant", "content": "Iron."},
     {"role": "user", "content": "And a gas?"}],
)  # fmt: skip


def literal(text: str) -> str:
    """Text as a Jinja expression. Inside one no newline is stripped, and braces mean nothing."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def question_template(template: str, gap: str, trim: bool) -> str:
    """Jinja of a template with one question in it, at the place of `gap`: the last thing that the user said."""
    head, tail = template.split(gap)
    return LAST + literal(head) + "{{ ns.asked" + (" | trim" if trim else "") + " }}" + literal(tail)


# The system text is looked at, and not said: none was trained. llama.cpp would put one that is not read into the question.
LAST = (
    "{% set ns = namespace(asked='', unsaid='') %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.asked = message['content'] %}{% elif message['role'] == 'system' %}"
    "{% set ns.unsaid = message['content'] %}{% endif %}{% endfor %}"
)


def alpaca_template(texts: dict) -> str:
    """The long template where the question has an input under its heading, else the short one."""
    short = question_template(texts["prompt_template_short"], "{instruction}", False)
    head, rest = texts["prompt_template"].split("{instruction}")
    heading, tail = rest.split("{input}")
    whole = literal(head) + "{{ ns.asked }}" + literal(tail)
    condition = "{% if " + json.dumps(heading, ensure_ascii=False) + " in ns.asked %}"
    return LAST + condition + whole + "{% else %}" + short.removeprefix(LAST) + "{% endif %}"


def chatml_template(system: str) -> str:
    """domain_mix's: ChatML written out, every turn trimmed and without markers of its own."""
    text = "message['content'] | replace('<|im_start|>', '') | replace('<|im_end|>', '') | replace('<|endoftext|>', '') | trim"
    turn = "{{ '<|im_start|>' + message['role'] + '\\n' }}{{ " + text + " }}{{ '<|im_end|>\\n' }}"
    loop = "{% for message in messages %}" + turn + "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    return opened(system, True) + loop if system else loop


def opened(system: str, several: bool) -> str:
    """Jinja that puts the trained system text before the messages where a client sends none, or an empty one."""
    said = f"{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}"
    other, turns = ("else", "ns.turns + [message]") if several else ("elif message['role'] == 'user'", "[message]")
    return (
        "{% set ns = namespace(system=" + said + ", turns=[]) %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% if message['content'] %}{% set ns.system = message %}{% endif %}"
        "{% " + other + " %}{% set ns.turns = " + turns + " %}{% endif %}{% endfor %}"
        "{% set messages = [ns.system] + ns.turns %}"
    )


def serving_template(task: str, texts: dict, own: str | None) -> tuple[str, str | None, str]:
    """(Jinja template, system text or None, "single" or "multi") of a run.

    texts: what was saved beside the adapter, name -> text. own: the tokenizer's chat template.
    Raises SystemExit where neither says how the model was asked.
    """
    if "prompt_template_short" in texts:
        return alpaca_template(texts), None, "single"
    if "{question}" in (asked := texts.get("prompt_template", "")):
        return question_template(asked, "{question}", True), None, "single"
    if "{instruction}" in asked:
        return question_template(asked.replace("{input}", ""), "{instruction}", False), None, "single"
    system = texts.get("system_prompt", OLD.get(task, PLAIN))
    if task == "domain_mix":
        return chatml_template(system), system or None, "multi"
    if not own:
        raise SystemExit("neither a prompt_template.txt nor a chat template: nothing says how this model was asked.")
    turns = "multi" if task in SEVERAL_TURNS else "single"
    return opened(system, turns == "multi") + "\n" + own, system, turns  # trim_blocks takes the newline


def kind_of(settings: dict) -> tuple[str, float]:
    """("plain", "merge" or what it cannot be, scale) of an adapter_config.json.

    plain: W + scale B A is the model, in any program. merge: PEFT computes something else; merged weights hold it.
    """
    scale = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
    init = settings.get("init_lora_weights", True)
    if settings.get("use_dora") or init in MERGED_ONLY:
        return "merge", scale
    return KINDS.get(init, f"init_lora_weights={init}" if init else "plain"), scale


def probe_ids(tokenizer, template: str) -> list[list[int]]:
    """The token ids of the six probes."""
    how = dict(chat_template=template, add_generation_prompt=True, return_dict=False)
    return [list(tokenizer.apply_chat_template(each, **how)) for each in PROBES]


def digest_probes(tokenizer, template: str) -> str | None:
    """A digest of the probes' ids; None where the template refuses a probe, such as one of two turns."""
    from jinja2 import TemplateError

    try:
        return digest_ids(probe_ids(tokenizer, template))
    except TemplateError:
        return None


def digest_ids(content) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(folder: Path, task: str, tokenizer, record: dict, base: str = "") -> dict:
    """Write serving.json and serving_template.jinja into a run's folder, beside its texts and its adapter, if it has one.

    tokenizer: the trained one, or a processor that has it. record: run.json. base: a digest of the base model, if known.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    texts = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.txt")}
    settings, arguments = read_json(folder / "adapter_config.json"), record.get("arguments", {})
    template, system, turns = serving_template(task, texts, tokenizer.chat_template)
    ids = [tokenizer.eos_token_id]
    ids += [each for each in tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
            if each not in (None, *ids) and (each != tokenizer.unk_token_id or each == tokenizer.pad_token_id)]  # fmt: skip
    kind, scale = kind_of(settings) if settings else ("whole", None)  # every weight was trained
    serving = {
        "format": 1,
        "task": task,
        "base": settings.get("base_model_name_or_path") or arguments.get("model"),
        "base_digest": base or read_json(folder / SERVING).get("base_digest", ""),
        "revision": settings.get("revision"),
        "trained_in": record.get("trained_in") or ("nf4" if arguments.get("quantization") == "4bit" else None),
        "eos": tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id),
        "eos_id": tokenizer.eos_token_id,
        "stop_ids": ids,
        "stop": tokenizer.convert_ids_to_tokens(ids),
        "system": system,
        "question": texts.get("prompt"),
        "turns": turns,
        "max_length": arguments.get("max_length") or 2048,
        "temperature": 0,
        "r": settings.get("r"),
        "alpha": settings.get("lora_alpha"),
        "scaling": scale,
        "init": settings.get("init_lora_weights", True) if settings else None,
        "kind": kind,
        "targets": settings.get("target_modules"),
        "prompt_sha256": None if "prompt" in texts else digest_probes(tokenizer, template),
    }
    replace_text(folder / TEMPLATE, template)
    write_json(folder / SERVING, serving)
    return serving


def keep_rows(folder: Path, *datasets):
    """Write heldout.jsonl: the first rows of tokenized datasets that have labels, such as the held-out and the training set.

    Each {"input_ids", "answer": index of the first trained token}. Rows of pictures are left out: ids do not hold them.
    """
    kept = []
    for dataset in datasets:
        names = set(getattr(dataset, "column_names", None) or ())
        has_labels = "input_ids" in names and names & {"labels", "completion_mask", "assistant_masks"}
        if "image" in names or not has_labels:
            continue
        for row in dataset.select(range(min(len(dataset), KEPT - len(kept)))):
            answer = next((i for i, label in enumerate(labels_of(row)) if label != -100), len(row["input_ids"]))
            kept.append(json.dumps({"input_ids": list(row["input_ids"]), "answer": answer}))
    if kept:
        replace_text(folder / HELD_OUT, "\n".join(kept) + "\n")


def next_steps(folder: Path) -> str:
    """What comes after training, as commands: files for other programs, and whether these are the trained model."""
    if (TASK_DIR.parent / "deploy" / "export.py").is_file():
        made, judged = (command(f"../deploy/{name}.py", folder) for name in ("export", "gate"))
        told = "As files for other programs: {made}\nAre they the trained model?  {judged}"
        return screen.text(told, made=made, judged=judged)
    return ("As files for llama.cpp, Ollama or vLLM, and proved to be this model: copy the repository's folder deploy/ beside "
            f"this one, then {command('../deploy/export.py', folder)}")  # fmt: skip
