"""Write the serving contract beside a run's adapter, and show it: serving.json and serving_template.jinja.

The tokenizer of a medical adapter still has its base's chat template, so a chat API would ask it in ChatML, a prompt that
it never saw. The contract holds the trained template, the tokens that end an answer, and what the adapter is. Newer runs
have it from the start; this writes it for older ones, from what lies in their folder.

Newest run:  python contract.py
One run:     python contract.py outputs/medical/20261122-101500
"""

import sys
from dataclasses import dataclass

from common.cli import arg, parse
from common.contract import PROBES, SERVING, write
from found import contract, open_run, tokenizer_of, with_run

DEFAULTS = {}


@dataclass
class Args:
    adapter: str | None = arg(
        None, "a finished run's folder (default: the newest of all recipes); also without the flag"
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    run = open_run(args.adapter, args.model)
    tokenizer = tokenizer_of(run)
    write(run.adapter, run.record.get("task", ""), tokenizer, run.record, contract(run)[0]["base_digest"])
    serving, template = contract(run)
    print(f"{run.adapter / SERVING}")
    for name in ("task", "base", "turns", "system", "eos", "stop", "max_length", "r", "alpha", "scaling", "kind"):
        print(f"  {name:<11} {serving[name]}")
    turns = {"single": "of a history the last question counts", "multi": "the history is part of the prompt"}[
        serving["turns"]
    ]
    print(f"\n{turns}. Markers such as {serving['eos']} in a user's text are read as markers. Asked by a chat API:\n")
    print(tokenizer.apply_chat_template(PROBES[-1], chat_template=template, add_generation_prompt=True, tokenize=False))


if __name__ == "__main__":
    main()
