"""Build a training mixture: so many rows of each source, in one format, without repeats, the same ones every time.

A plan (plans/*.yaml) names the total, each source's ratio and where it comes from. Every row gets a number: a hash of
its normalised question and the plan's seed. Equal questions have equal numbers, which finds repeats; and the rows with
the smallest numbers are a uniform random sample that does not depend on the order of the files (bottom-k sampling).
So one pass and the memory of the rows that are taken are enough.

Sources of the hub: python data.py --plan small
Without the hub:    python data.py --plan small --source slimorca=/data/SlimOrca pubmedqa=/data/pqa_labeled.parquet
A plan of your own: python data.py --plan my_plan.yaml --out mix.jsonl
Offline, seconds:   python data.py --demo --out mix.jsonl
"""

import argparse
import contextlib
import hashlib
import heapq
import json
import re
import shutil
import unicodedata
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_PLAN = HERE / "sample" / "plan.yaml"


# From each source's schema to (instruction, input, output). What cannot be used is said by a ValueError.


def from_alpaca(row):
    """{"instruction", "input" (may be absent or null), "output"}, as in my_dataset.json."""
    extra = row.get("input")
    return text_of(row, "instruction"), text_of(row, "input") if extra is not None else "", text_of(row, "output")


def from_slimorca(row):
    """{"conversations": [{"from": "system" | "human" | "gpt", "value"}]}: the first question and its answer.

    The system turns are left out: there are a dozen of them, and train.py teaches one system prompt for all domains.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations is not a list of turns")
    turns = [turn for turn in turns if turn.get("from") != "system"]
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise ValueError("conversations does not begin with human and gpt")
    return text_of(turns[0], "value"), "", text_of(turns[1], "value")


def from_pubmedqa(row):
    """{"question", "context": {"contexts": [...]} or "contexts": [...], "long_answer"}: the abstract is the input."""
    contexts = row["context"].get("contexts") if isinstance(row.get("context"), dict) else row.get("contexts")
    if not isinstance(contexts, list) or not all(isinstance(part, str) for part in contexts):
        raise ValueError("contexts is not a list of texts")
    return text_of(row, "question"), "\n".join(contexts), text_of(row, "long_answer")


def from_stackexchange(row):
    """{"question": HTML, "answers": [{"text": HTML, "pm_score", "selected"}]}: the best-scored answer."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError("answers is not a list")
    if not answers:
        raise ValueError("no answer")
    if not all(isinstance(answer.get("pm_score"), int | float) for answer in answers):
        raise ValueError("an answer's pm_score is not a number")
    best = max(answers, key=lambda answer: (answer["pm_score"], bool(answer.get("selected"))))
    return html_to_text(text_of(row, "question")), "", html_to_text(text_of(best, "text"))


ADAPTERS = {
    "alpaca": from_alpaca,
    "slimorca": from_slimorca,
    "pubmedqa": from_pubmedqa,
    "stackexchange": from_stackexchange,
}


def text_of(row, name):
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {'missing' if value is None else 'not text'}")
    return value


class _Text(HTMLParser):
    """Collects text and code of HTML by turns: blocks[0] is text, blocks[1] the first <pre>, blocks[2] text, ..."""

    BLOCKS = {"p", "div", "ul", "ol", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "table", "tr", "hr"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.hidden = [[]], 0

    def in_code(self):
        return len(self.blocks) % 2 == 0

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style"):
            self.hidden += 1
        elif tag == "pre":
            if not self.in_code():
                self.blocks.append([])
        elif tag == "code" and not self.in_code():
            self.blocks[-1].append("`")
        elif tag == "br":
            self.blocks[-1].append("\n")
        elif tag == "li":
            self.blocks[-1].append("\n- ")
        elif tag in self.BLOCKS:
            self.blocks[-1].append("\n\n")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.hidden = max(self.hidden - 1, 0)
        elif tag == "pre":
            if self.in_code():
                self.blocks.append([])
        elif tag == "code" and not self.in_code():
            self.blocks[-1].append("`")
        elif tag in self.BLOCKS:
            self.blocks[-1].append("\n\n")

    def handle_data(self, data):
        if not self.hidden:
            # Outside code a line break of the source is a space, as in a browser.
            self.blocks[-1].append(data if self.in_code() else data.replace("\n", " "))

    def updatepos(self, i, j):
        return j  # line numbers, which nobody asks for, take a tenth of the time


def html_to_text(html: str) -> str:
    """Plain text of an HTML fragment. Code blocks keep their line breaks and indents, between ``` lines."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    pieces = []
    for number, block in enumerate("".join(parts) for parts in parser.blocks):
        if number % 2:
            pieces.append("```\n" + block.strip("\n") + "\n```")
            continue
        kept = []
        for line in (" ".join(line.split()) for line in block.split("\n")):
            if line.startswith("- "):  # a list has no empty lines in it
                while kept and not kept[-1]:
                    kept.pop()
            if line or (kept and kept[-1]):
                kept.append(line)
        pieces.append("\n".join(kept).strip("\n"))
    return "\n\n".join(piece for piece in pieces if piece)


# Reading


def read_local(path):
    """(where, row) of a JSON, JSONL or Parquet file, or of a folder of them in the order of their names.

    Whether JSON is a list or a row a line is told by the content, not by the name. A row that is no JSON comes as the
    ValueError that says why; a file that cannot be read at all raises SystemExit.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".json", ".jsonl", ".parquet"))
        if not files:
            raise SystemExit(f"{path}: no .json, .jsonl or .parquet file in this folder.")
    elif path.is_file():
        files = [path]
    else:
        raise SystemExit(f"{path}: no such file or folder.")
    for file in files:
        rows = read_parquet(file) if file.suffix.lower() == ".parquet" else read_json(file)
        for number, row in enumerate(rows, 1):
            yield f"{file}: row {number}", row


def read_parquet(file):
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise SystemExit(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def read_json(file):
    """Rows of a JSON list or of JSON lines. The file is read in pieces: it may be larger than the memory."""
    try:
        with open(file, encoding="utf-8-sig") as source:
            head = source.read(1)
            while head.isspace():
                head = source.read(1)
            if head == "[":
                yield from read_list(file, source)
            else:
                source.seek(0)
                for line in source:
                    if line.strip():
                        try:
                            yield json.loads(line)
                        except ValueError as error:
                            yield ValueError(f"not JSON: {error}")
    except UnicodeDecodeError as error:
        raise SystemExit(f"{file}: not UTF-8 (byte {error.start} of a block). Save it as UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}.") from None


def read_list(file, source, size=1 << 20):
    """The items of a JSON list whose [ was read already."""
    decode, text, at, count = json.JSONDecoder().raw_decode, "", 0, 0
    skip = re.compile(r"[\s,]*")
    while True:
        at = skip.match(text, at).end()
        if at < len(text) and text[at] == "]":
            return
        item = None
        if at < len(text):
            try:
                item, end = decode(text, at)
            except ValueError as error:
                reason = error
            else:
                if end < len(text):  # a number at the very end could go on in the next piece
                    count, at = count + 1, end
                    yield item
                    continue
        more = source.read(size)
        if not more:
            said = "ends in the middle of the list" if at >= len(text) or item else f"not JSON: {reason}"
            raise SystemExit(f"{file}: {said}, after {count:,} rows. Was the file cut off?")
        text, at = text[at:] + more, 0
        size = max(size, len(text))  # a long item is not tried again for each small piece


def read_hub(spec, seed):
    """Rows of a data set on the hub, in an order shuffled by `seed`, as they arrive."""
    from datasets import load_dataset

    options = {"name": spec.get("config"), "data_files": spec.get("files"), "split": spec.get("split", "train")}
    stream = load_dataset(spec["hub"], streaming=True, **options).shuffle(seed=seed, buffer_size=10_000)
    for number, row in enumerate(stream, 1):
        yield f"{spec['hub']}: row {number}", row


# Taking


@dataclass
class Report:
    """What became of one source, or of one of its keyword groups."""

    name: str
    asked: int
    available: int = 0
    taken: int = 0
    more: bool = False  # the hub was read only until there was enough
    dropped: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def normalise(text: str) -> str:
    """What makes two texts the same: not their width, their case or their spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def keyword_groups(groups):
    """groups: {name: [keyword]} -> function from a text to the first group with a keyword in it, or None.

    Keywords are whole words, in any case; Chinese ones, which no space ends, are looked for anywhere.
    """
    patterns = {}
    for name, words in groups.items():
        bounded = [re.escape(str(word).casefold()) for word in words]
        bounded = [rf"(?<!\w){word}(?!\w)" if word.isascii() else word for word in bounded]
        patterns[name] = re.compile("|".join(bounded))

    def group_of(text):
        text = text.casefold()
        return next((name for name, pattern in patterns.items() if pattern.search(text)), None)

    return group_of


def take(name, spec, quotas, seed, seen, progress=True):
    """Take one source's share -> (rows in random order, [Report]).

    spec: the plan's entry, with `path` (local) or `hub`. quotas: {group: rows}, the group None where the source has no
    keywords. seen: the numbers of the rows that other sources gave already; those taken here are added.
    """
    from tqdm import tqdm

    adapt, local = ADAPTERS[spec["format"]], "path" in spec
    group_of = keyword_groups(spec["keywords"]) if "keywords" in spec else lambda text: None
    reports = {group: Report(name + (f"/{group}" if group else ""), asked) for group, asked in quotas.items()}
    first = next(iter(reports.values()))
    heaps, known, key = {group: [] for group in quotas}, set(), str(seed).encode()

    def drop(why, where=None):
        kind = why.split(":")[0]
        first.dropped[kind] = first.dropped.get(kind, 0) + 1
        if where and first.dropped[kind] == 1:  # the first of each kind is named
            first.notes.append(f"{where}: {why}")

    rows = read_local(spec["path"]) if local else read_hub(spec, seed)
    for number, (where, row) in enumerate(tqdm(rows, desc=name, unit=" rows", disable=not progress)):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"not an object but {type(row).__name__}")
            instruction, extra, output = (text.strip() for text in adapt(row))
        except ValueError as error:
            drop(str(error), where)
            continue
        if not instruction or not output:
            drop("empty instruction" if not instruction else "empty output", where)
            continue
        group = group_of(f"{instruction}\n{extra}")
        if group not in quotas:
            drop("no keyword")
            continue
        text = normalise(f"{instruction}\n{extra}")
        rank = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12, key=key).digest()
        if rank in seen or rank in known:
            drop("duplicate")
            continue
        known.add(rank)
        reports[group].available += 1
        row = {"instruction": instruction, "input": extra, "output": output, "source": reports[group].name}
        # A heap of negated ranks: its top is the largest rank that is still kept. `number` settles no tie, ranks differ.
        entry = (-int.from_bytes(rank), number, row)
        if len(heaps[group]) < quotas[group]:
            heapq.heappush(heaps[group], entry)
        elif quotas[group] and local:
            heapq.heappushpop(heaps[group], entry)
        if not local and all(len(heaps[each]) == quotas[each] for each in quotas):
            for report in reports.values():
                report.more = True
            break
    taken = []
    for group, heap in heaps.items():
        reports[group].taken = len(heap)
        seen.update((-entry[0]).to_bytes(12) for entry in heap)
        taken += heap
    return [row for _, _, row in sorted(taken, reverse=True)], list(reports.values())


def load_plan(file, sources=()) -> dict:
    """A plan file, checked, with `sources` (NAME=PATH) put in. Raises SystemExit with the file and its key."""
    import yaml

    file = Path(file)
    if not file.exists() and file.name == str(file) and not file.suffix:
        file = HERE / "plans" / f"{file}.yaml"
    try:
        plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}. Plans that come along: small, large.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SystemExit(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from None
    keys = {"total": int, "seed": int, "ratios": dict, "sources": dict}
    if not isinstance(plan, dict) or set(plan) != set(keys):
        raise SystemExit(f"{file}: a plan has exactly the keys {', '.join(keys)}.")
    for key, kind in keys.items():
        if type(plan[key]) is not kind or not plan[key] and key != "seed":
            raise SystemExit(f"{file}: {key} must be {'a whole number above 0' if kind is int else 'a mapping'}.")
    names = {}
    for name, spec in plan["sources"].items():
        if not isinstance(spec, dict) or spec.get("format") not in ADAPTERS:
            raise SystemExit(f"{file}: sources: {name}: format must be one of {', '.join(ADAPTERS)}.")
        if unknown := set(spec) - {"format", "path", "hub", "config", "files", "split", "keywords"}:
            raise SystemExit(f"{file}: sources: {name}: unknown key {sorted(unknown)[0]!r}.")
        if "path" not in spec and "hub" not in spec:
            raise SystemExit(f"{file}: sources: {name}: needs a path or a hub.")
        if "path" in spec:
            spec["path"] = str(find_file(spec["path"], file.parent))
        groups = spec.get("keywords", {None: ["any"]})
        if not isinstance(groups, dict) or not all(isinstance(words, list) and words for words in groups.values()):
            raise SystemExit(f"{file}: sources: {name}: keywords must be lists by group, none of them empty.")
        names |= {f"{name}/{group}" if group else name: (name, group) for group in groups}
    if set(names) != set(plan["ratios"]):
        odd = sorted(set(names) ^ set(plan["ratios"]))
        raise SystemExit(f"{file}: ratios and sources must name the same; they differ in {', '.join(odd)}.")
    ratios = plan["ratios"]
    if not all(isinstance(ratio, int | float) and ratio >= 0 for ratio in ratios.values()):
        raise SystemExit(f"{file}: ratios must be numbers from 0 to 1.")
    if abs(sum(ratios.values()) - 1) > 1e-6:
        raise SystemExit(f"{file}: the ratios sum to {sum(ratios.values()):.6g}, not to 1.")
    for source in sources:
        name, sign, path = source.partition("=")
        if not sign or not path or name not in plan["sources"]:
            raise SystemExit(f"--source {source}: expected NAME=PATH with NAME one of {', '.join(plan['sources'])}.")
        plan["sources"][name] = {**plan["sources"][name], "path": str(Path(path).expanduser())}
    quotas = share_out(plan["total"], ratios)
    plan["quotas"] = {name: {} for name in plan["sources"]}
    for full, (name, group) in names.items():
        plan["quotas"][name][group] = quotas[full]
    return plan


def find_file(path, folder):
    """A plan's path: beside the plan, in the working folder, or in DATA_DIR/domain_mix."""
    from common.paths import data_dir

    places = [folder / path, Path(path), data_dir() / path]
    return next((place for place in places if place.exists()), places[-1])


def share_out(total, ratios) -> dict:
    """`total` rows in whole numbers by ratio; the rows that rounding leaves go to the largest remainders."""
    quotas = {name: int(total * ratio + 1e-9) for name, ratio in ratios.items()}
    by_remainder = sorted(ratios, key=lambda name: quotas[name] - total * ratios[name])
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def mix(plan, allow_short=False, parts=None, progress=True):
    """Take all sources of a plan -> (rows, [Report]). Rows are in random order, the same ones for the same seed.

    parts: a folder in which each source that was taken is kept, so that a run that was cut off need not take it again.
    Raises SystemExit where a source has too few rows, unless `allow_short`.
    """
    rows, reports, seen, chain = [], [], set(), ""
    for name, spec in plan["sources"].items():
        quotas = plan["quotas"][name]
        # What a source gives depends on those before it, whose rows it must not repeat.
        made_from = [chain, plan["seed"], list(quotas.items()), spec, file_stamps(spec)]
        chain = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        part = parts / f"{name}.jsonl" if parts else None
        kept = read_part(part, chain) if part else None
        if kept:
            taken, made = kept
            print(f"{name}: {len(taken):,} rows were taken before ({part})")
            seen.update(number_of(row, plan["seed"]) for row in taken)
        else:
            try:
                taken, made = take(name, spec, quotas, plan["seed"], seen, progress)
            except Exception as error:  # no network, no such data set, an interrupted download: the advice is the same
                if "path" in spec:
                    raise
                raise SystemExit(
                    f"source {name}: {spec['hub']} cannot be read from the hub "
                    f"({' '.join(str(error).split())[:200] or type(error).__name__}).\n"
                    f"Give a local copy: --source {name}=PATH (a JSON, JSONL or Parquet file, or a folder of them). "
                    f"To get one on a machine with a network: hf download {spec['hub']} --repo-type dataset "
                    f"--local-dir {name}"
                ) from None
            if part:
                write_part(part, chain, taken, made)
        rows += taken
        reports += made
    short = [f"{report.name} has {report.available:,} of {report.asked:,}" for report in reports if short_of(report)]
    if short and not allow_short:
        print(format_reports(reports))
        raise SystemExit(
            f"too few rows: {'; '.join(short)}. Lower the total or the ratio in the plan, give more data with --source, "
            "or take what there is with --allow_short."
        )
    if not rows:
        raise SystemExit("no source has a row that can be used.")
    rows.sort(key=lambda row: number_of(row, plan["seed"]))
    return rows, reports


def short_of(report):
    return report.taken < report.asked


def number_of(row, seed):
    """The row's number as `take` computed it; sorting by it mixes the sources."""
    text = normalise(f"{row['instruction']}\n{row['input']}")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12, key=str(seed).encode()).digest()


def file_stamps(spec):
    """Names, sizes and times of a local source's files: a part made from other files is not used."""
    path = Path(spec.get("path", ""))
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if "path" in spec and path.is_file() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def read_part(part, chain):
    with contextlib.suppress(OSError, ValueError, KeyError), open(part, encoding="utf-8") as lines:
        head = json.loads(next(lines))
        if head["made_from"] == chain:
            return [json.loads(line) for line in lines], [Report(**report) for report in head["reports"]]
    return None


def write_part(part, chain, rows, reports):
    head = {"made_from": chain, "reports": [asdict(report) for report in reports]}
    write_jsonl([head, *rows], part)


def write_jsonl(rows, out):
    """Write rows so that `out` is there whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new")
    # A lone surrogate is legal in JSON (\\ud83d) and in no UTF-8 file.
    with open(new, "w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    new.replace(out)


def format_reports(reports) -> str:
    """The table asked / available / taken, what was dropped and why, and the ratios where a source ran short."""
    total = sum(report.taken for report in reports) or 1
    width = max(len(report.name) for report in reports) + 2
    lines = [f"{'source':<{width}}{'asked':>9}{'available':>11}{'taken':>9}{'share':>8}"]
    for report in reports:
        available = f"{report.available:,}{'+' if report.more else ''}"
        share = f"{report.taken / total:.1%}"
        lines.append(f"{report.name:<{width}}{report.asked:>9,}{available:>11}{report.taken:>9,}{share:>8}")
    for report in reports:
        if report.dropped:
            why = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
            lines.append(f"{report.name.split('/')[0]}: dropped {why}")
        lines += [f"  {note}" for note in report.notes]
    if any(short_of(report) for report in reports):
        ratios = ", ".join(f"{report.name} {report.taken / total:.4f}" for report in reports)
        lines.append(f"short: the ratios that resulted are {ratios}")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--plan", default="small", help="small, large, or a plan's YAML file (default: %(default)s)")
    parser.add_argument(
        "--source", action="append", nargs="+", metavar="NAME=PATH", help="read a source from a local file or folder"
    )
    parser.add_argument("--out", type=Path, help="the new JSONL file (default: DATA_DIR/domain_mix/<plan>.jsonl)")
    parser.add_argument("--allow_short", action="store_true", help="take what there is where a source has too few rows")
    parser.add_argument("--demo", action="store_true", help="the plan of sample/: seconds, no hub")
    args = parser.parse_args(argv)
    from common.paths import data_dir, load_env

    load_env()
    name = DEMO_PLAN if args.demo else args.plan
    plan = load_plan(name, [each for group in args.source or [] for each in group])
    out = args.out or data_dir() / f"{'demo' if args.demo else Path(name).stem}.jsonl"
    if out.exists():
        raise SystemExit(f"{out} exists and is kept. Name another file with --out, or move it away.")
    parts = out.with_name(f"{out.name}.parts")
    rows, reports = mix(plan, args.allow_short, parts)
    print(format_reports(reports))
    write_jsonl(rows, out)
    shutil.rmtree(parts)
    print(f"{len(rows):,} rows written to {out}")


if __name__ == "__main__":
    main()
