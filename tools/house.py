"""Holds the house against its plan:  make lint  (or python tools/house.py, which also prints the tables)

Code lines of common/ by storey, what each folder carries of it, import circles, who imports common/speed, the longest
lesson file, and whether the folders' train.py have their common names in the same order. A code line is one that is not
blank, a comment or a docstring.
"""

import ast
import io
import itertools
import sys
import tokenize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sync_common import ROOT, closure, tasks

READ = {"paths", "tokens", "device", "cli", "models", "answers", "demo_model"}
DATA = {"text", "tables", "rows", "grading"}
GUARD = {
    "files",
    "settings",
    "hub",
    "adapters",
    "finite",
    "contract",
    "runs",
    "report",
    "rehearse",
    "trackers",
    "screen",
}
SPEED = {"packing", "lora", "fit", "engine"}
UNCOUNTED = {"graph"}  # until it is measured against vLLM and transformers' own continuous batching
STOREYS = {"read": (READ, 700), "data": (DATA, 1150), "guard": (GUARD, 1830), "speed": (SPEED, 500)}
CARRIED = {"math_demos": 880, "vl_insurance": 3580}  # code lines of common/ that a folder may carry
CARRIED_BY_OTHERS = 3980
LESSON, TRAIN = 300, 250  # lines of a lesson file, of a train.py
LONG = {"train_ppo.py"}  # the one lesson that may be longer


def code_lines(file: Path) -> int:
    text = file.read_text("utf-8")
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def imports(file: Path) -> set:
    """Names of the modules that a file imports, those inside functions too; "from a import b" gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def circle(graph: dict) -> list:
    """The first import circle of a graph (module -> modules), as a path; empty if there is none."""
    done = set()

    def walk(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node]):
                if found := walk(other, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def graph_of(files: dict) -> dict:
    """files: module's name -> its path."""
    return {name: (imports(file) & set(files)) - {name} for name, file in files.items()}


def top_names(file: Path) -> list:
    """Functions, classes and constants of a script, in order."""
    names = []
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    return names


def check(root=ROOT):
    """(lines that describe the house, lines that say what is wrong with it)."""
    said, wrong, common = [], [], root / "common"
    modules = {file.stem: file for file in common.glob("*.py") if file.stem != "__init__"}
    speed = {file.stem: file for file in (common / "speed").glob("*.py") if file.stem != "__init__"}
    if strangers := set(modules) ^ (READ | DATA | GUARD):
        wrong.append(f"common/: not in the plan, or missing: {', '.join(sorted(strangers))}")
    if strangers := set(speed) - SPEED - UNCOUNTED:
        wrong.append(f"common/speed/: not in the plan: {', '.join(sorted(strangers))}")
    for storey, (names, most) in STOREYS.items():
        counts = {name: code_lines((modules | speed)[name]) for name in sorted(names) if name in modules | speed}
        said.append(
            f"{storey:<6} {sum(counts.values()):>4} of {most}: " + ", ".join(f"{n} {c}" for n, c in counts.items())
        )
        if sum(counts.values()) > most:
            wrong.append(f"common/: {storey} has {sum(counts.values())} code lines, {most} at most")

    files = {f"common.{name}": file for name, file in modules.items()}
    files |= {f"common.speed.{name}": file for name, file in speed.items()}
    if found := circle(graph_of(files)):
        wrong.append(f"import circle: {' -> '.join(found)}")
    for name in modules:
        if any(each.startswith("common.speed") for each in imports(modules[name])):
            wrong.append(f"common/{name}.py imports common.speed: only the folders' own scripts do")

    for task in tasks(root):
        own = {file.stem: file for file in sorted(task.glob("*.py"))}
        carried = sum(code_lines(common / file) for file in closure(task, root))
        longest = max((len(file.read_text("utf-8").splitlines()), file.name) for file in own.values())
        said.append(
            f"{task.name:<12} carries {carried:>4} code lines of common/, longest file {longest[1]} {longest[0]}"
        )
        if carried > (most := CARRIED.get(task.name, CARRIED_BY_OTHERS)):
            wrong.append(f"{task.name}/ carries {carried} code lines of common/, {most} at most")
        if found := circle(graph_of(own)):
            wrong.append(f"{task.name}/: import circle: {' -> '.join(found)}")
        for name, file in own.items():
            most = TRAIN if name == "train" else LESSON
            if (count := len(file.read_text("utf-8").splitlines())) > most and file.name not in LONG:
                wrong.append(f"{task.name}/{file.name} has {count} lines, {most} at most")
        if "prompt" in own and "prompt_ids" not in top_names(own["prompt"]):
            wrong.append(f"{task.name}/prompt.py has no prompt_ids")
    scripts = [task / "train.py" for task in tasks(root) if (task / "train.py").is_file()]
    for one, other in itertools.combinations(scripts, 2):
        first, second = top_names(one), top_names(other)
        shared = [name for name in first if name in second]
        if shared != (there := [name for name in second if name in first]):
            wrong.append(
                f"{one.parent.name}/train.py has {' '.join(shared)}, {other.parent.name}/train.py {' '.join(there)}"
            )
    return said, wrong


def main():
    said, wrong = check()
    print("\n".join(said))
    if wrong:
        raise SystemExit("\n".join(["", "not as planned:", *wrong]))


if __name__ == "__main__":
    main()
