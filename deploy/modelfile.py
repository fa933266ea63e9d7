"""Ollama's Modelfile for a trained model: written, read back, and rendered as Ollama does, so that it can be compared.

Ollama reads no Jinja: its TEMPLATE is a Go template. Written here are the two forms that the recipes are trained in: a
question inside a fixed text, and ChatML. What Ollama cannot do (trim a question, take markers out of it) is said in it.
"""

import json
import re
from pathlib import Path

from common.contract import PROBES

INSTRUCTIONS = {"FROM", "TEMPLATE", "SYSTEM", "PARAMETER", "LICENSE", "ADAPTER", "MESSAGE"}


def go_text(text: str) -> str:
    """Text for a Go template between three quotes: what would end either stands in an expression, and so do newlines at
    its ends, which a reader of the file may strip."""
    text = text.replace("{{", '\0{{ "{{" }}\0').replace('"""', '\0{{ "\\u0022\\u0022\\u0022" }}\0').replace("\0", "")
    body = text.strip("\n")
    before, after = text[: len(text) - len(text.lstrip("\n"))], text[len(text.rstrip("\n")) :] if body else ""
    wrap = lambda newlines: "{{ " + json.dumps(newlines) + " }}" if newlines else ""  # noqa: E731
    return wrap(before) + body + wrap(after)


def template_of(jinja: str, serving: dict) -> str:
    """The Go template of a serving contract. jinja: its template, whose fixed texts are taken over."""
    if "ns.asked" in jinja:  # a question in a fixed text; of alpaca's two texts the one without an input
        jinja = jinja.split("{% else %}")[-1]
        head, tail = re.search(
            r'\{\{ ("(?:[^"\\]|\\.)*") \}\}\{\{ ns\.asked[^}]*\}\}\{\{ ("(?:[^"\\]|\\.)*") \}\}', jinja
        ).groups()
        inner = go_text(json.loads(head)) + "{{ .Content }}" + go_text(json.loads(tail))
        return "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}" + inner + "{{ end }}{{ end }}"
    start, end = "<|im_start|>", "<|im_end|>\n"
    system = serving["system"]
    said = "{{ if .System }}{{ .System }}{{ else }}" + go_text(system) + "{{ end }}" if system else "{{ .System }}"
    opening = f"{start}system\n{said}{end}"
    if not system:
        opening = "{{ if .System }}" + opening + "{{ end }}"
    turn = start + "{{ .Role }}\n{{ .Content }}" + end
    if serving["turns"] == "single":
        loop = "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}" + turn + "{{ end }}{{ end }}"
    else:
        loop = '{{ range .Messages }}{{ if ne .Role "system" }}' + turn + "{{ end }}{{ end }}"
    return opening + loop + start + 'assistant{{ "\\n" }}'


def write(file: str, jinja: str, serving: dict) -> str:
    """The Modelfile's text. file: what FROM names, relative to it."""
    note = {"single": "One question at a time, as in training: of a history the last message counts.",
            "multi": "Asked with history, as in training."}[serving["turns"]]  # fmt: skip
    lines = [f"# {serving['task']}: {note}", "# Spaces around a question are not trimmed, and markers in it are read as markers.",
             f"FROM {file}", f'TEMPLATE """{template_of(jinja, serving)}"""']  # fmt: skip
    if serving["system"]:
        lines.append(
            f'SYSTEM """{serving["system"]}"""' if '"""' not in serving["system"] else "# its text is in TEMPLATE"
        )
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in serving["stop"]]
    lines += [f"PARAMETER num_ctx {serving['max_length']}", f"PARAMETER temperature {serving['temperature']}"]
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict:
    """{"FROM": text, "TEMPLATE": text, "SYSTEM": text or None, "stop": [...], other parameters}. SystemExit at a fault."""
    found, at = {"SYSTEM": None, "stop": []}, 0
    pattern = re.compile(r'(#[^\n]*|(\w+)[ \t]+(?:(\w+)[ \t]+)??("""(.*?)"""|[^\n]*))?(?:\n|\Z)', re.DOTALL)
    while at < len(text):
        match = pattern.match(text, at)
        name = match[2] and match[2].upper()
        if not match[1] or match[1].startswith("#"):
            at = match.end()
            continue
        if name not in INSTRUCTIONS:
            raise SystemExit(f"Modelfile: {match[1].splitlines()[0][:60]!r} is no instruction.")
        value = match[5] if match[5] is not None else match[4]
        if match[5] is None and '"""' in value:
            raise SystemExit(f'Modelfile: {name}: the three quotes (""") are never closed.')
        if name == "PARAMETER":
            key, value = match[4].split(None, 1)
            value = json.loads(value) if value.startswith('"') else value
            found["stop"].append(value) if key == "stop" else found.__setitem__(key, value)
        else:
            found[name] = value
        at = match.end()
    return found


def lint(text: str, folder: Path, serving: dict) -> dict:
    """The parsed Modelfile, or SystemExit with what is wrong: no file, no template, a stop that is missing."""
    found = parse(text)
    for name in ("FROM", "TEMPLATE", "num_ctx", "temperature"):
        if name not in found:
            raise SystemExit(f"Modelfile: {name} is missing.")
    if not (folder / found["FROM"]).exists():
        raise SystemExit(f"Modelfile: FROM {found['FROM']}: no such file in {folder}.")
    if missing := [stop for stop in serving["stop"] if stop not in found["stop"]]:
        raise SystemExit(f"Modelfile: no PARAMETER stop for {missing[0]}: answers would not end.")
    if bool(found["SYSTEM"]) and not serving["system"]:
        raise SystemExit("Modelfile: SYSTEM, but the model was trained without one.")
    return found


def render(modelfile: dict, messages: list[dict]) -> str:
    """The prompt that Ollama makes of messages: neighbours of one role are joined, SYSTEM stands where none is sent."""
    messages = [dict(each) for each in messages]
    if messages[0]["role"] != "system" and modelfile["SYSTEM"]:
        messages.insert(0, {"role": "system", "content": modelfile["SYSTEM"]})
    joined = []
    for each in messages:
        if joined and joined[-1]["role"] == each["role"]:
            joined[-1]["content"] += "\n\n" + each["content"]
        else:
            joined.append(each)
    system = "\n\n".join(each["content"] for each in joined if each["role"] == "system")
    return execute(modelfile["TEMPLATE"], {"System": system, "Messages": joined}, joined)


def execute(template: str, values: dict, messages: list[dict]) -> str:
    """A Go template of the kind that is written here: literals, fields, if, else, range, eq, ne, len, slice."""
    parts = re.split(r"\{\{-? *(.*?) *-?\}\}", template, flags=re.DOTALL)

    def block(at, dot, number):
        """(text, index of the `else` or `end` that ends this block)."""
        out = ""
        while at < len(parts):
            if at % 2 == 0:
                out += parts[at]
            elif parts[at] in ("end", "else"):
                return out, at
            elif parts[at].startswith("if "):
                yes, stop = block(at + 1, dot, number)
                no, end = block(stop + 1, dot, number) if parts[stop] == "else" else ("", stop)
                out, at = out + (yes if true(parts[at][3:], dot, number) else no), end
            elif parts[at].startswith("range "):
                begin = at
                for i, each in enumerate(messages):
                    made, at = block(begin + 1, each, i)
                    out += made
            elif parts[at].startswith('"'):
                out += json.loads(parts[at])
            else:
                out += field(parts[at], dot)
            at += 1
        return out, at

    def field(name, dot):
        name = name.removeprefix(".")
        if name.lower() in dot:
            return dot[name.lower()]
        if name not in values:
            raise SystemExit(f"Modelfile: TEMPLATE has {{{{ {name} }}}}, which is not understood here.")
        return values[name]

    def true(condition, dot, number):
        if condition == "eq (len (slice $.Messages $i)) 1":
            return number == len(messages) - 1
        if match := re.fullmatch(r'ne \.Role "(\w+)"', condition):
            return dot["role"] != match[1]
        return bool(field(condition, dot))

    return block(0, {}, 0)[0]


def differences(modelfile: dict, tokenizer, jinja: str) -> list[str]:
    """The probes whose token ids differ between the Modelfile and the serving template. Trimmed first: Ollama does not."""
    wrong = []
    for probe in PROBES:
        expected = tokenizer.apply_chat_template(
            probe, chat_template=jinja, add_generation_prompt=True, return_dict=False
        )
        if tokenizer(render(modelfile, probe), add_special_tokens=False).input_ids != list(expected):
            wrong.append(probe[-1]["content"])
    return wrong
