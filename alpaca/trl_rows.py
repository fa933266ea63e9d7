"""What the two scripts share in which TRL tokenizes: rows that fit, and a trainer that is built before the run has a folder."""

import contextlib
import tempfile

from common.tokens import report_dropped


def fitting(rows, texts, tokenizer, max_length, name):
    """Rows (dicts of TRL's columns) as a datasets.Dataset without those whose text has more than max_length tokens.

    texts: what TRL will tokenize of each row. It would cut a long one in the middle of its answer.
    """
    from datasets import Dataset

    lengths = map(len, tokenizer(texts, add_special_tokens=False).input_ids)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    report_dropped(len(rows), len(kept), max_length, name)
    return Dataset.from_list(kept)


@contextlib.contextmanager
def before_the_run(config):
    """A trainer makes config.output_dir when it is built. Run chooses it by the tokenized rows, which come from the
    trainer: until then it is a scratch folder."""
    asked = config.output_dir
    with tempfile.TemporaryDirectory() as config.output_dir:
        yield
    config.output_dir = asked
