# Generated from common/settings.py: edit that file, then run `make sync`.
"""Settings as people give them: numbers in their ranges, and YAML that says one thing only.

A flag of one name has one range, in every script. What is out of it is refused before anything is loaded.
"""

import argparse
import json
import re

SEEDS = 2**32 - 1  # numpy takes no larger one
YAML_BYTES = 100_000
# What is expected, whether a value is that, and of which flags. NaN is never in a range.
RANGES = [
    ("1 or more", lambda x: x >= 1, """
        batch_size per_device_train_batch_size per_device_eval_batch_size micro_batch_size gradient_accumulation_steps
        eval_accumulation_steps rows_per_step rollout_size generation_batch_size steps_per_generation num_iterations
        epochs minibatches updates steps iterations lora_r lora_alpha rank ranks lora_ranks max_length max_prompt_length
        max_prompt_tokens max_completion_length max_new_tokens max_answer max_chars max_pixels max_pairs context limit
        held_out eval_rows eval_pictures evaluations eval_every save_every follow_steps save_total_limit snapshots pass_k
        chunk pool n prompts seeds warmup_sft_rows arithmetic count select dataset_num_proc pad_to_multiple_of
        torch_empty_cache_steps num_generations_eval stop_after slots max_requests pairs size flora_rank"""),
    ("2 or more", lambda x: x >= 2, "num_generations answers sft_samples"),
    ("0 or more", lambda x: x >= 0, """
        show_answers show_mask longest_steps grace eval_answers eval_prompts eval_problems probe_prompts follow dead_steps warmup_sft overfit samples cap
        max_think num_ignore snapshot_every value_warmup no_repeat_ngram_size threads workers k warmup_steps eval_delay
        dataloader_num_workers weight_decay max_grad_norm neftune_noise_alpha price_per_hour temperature top_k beta epsilon
        kl_coef kl_target eos_penalty center value_clip bias_lam weight margin curve_rows seconds tokens ask chat_steps most"""),
    ("a number above 0", lambda x: x > 0, """
        learning_rate value_learning_rate lora_learning_rate warmup_sft_lr num_train_epochs minutes logging_steps eval_steps
        save_steps adam_epsilon clip lam repetition_penalty timeout good_weight bad_weight grid loraplus_ratio"""),
    ("a port from 0 to 65535", lambda x: 0 <= x <= 65535, "port page_port"),
    ("-1 (no limit), or 1 or more", lambda x: x == -1 or x >= 1, "max_steps"),
    ("a share between 0 and 1, as 0.1", lambda x: 0 < x < 1, "eval_ratio test_share share"),
    ("a number from 0 to 1", lambda x: 0 <= x <= 1, "shown warmup gamma gae_lambda min_p hardest difficulty"),
    ("a number from 0 to below 1", lambda x: 0 <= x < 1, "lora_dropout adam_beta1 adam_beta2 label_smoothing_factor replay shares"),
    ("a number above 0, at most 1", lambda x: 0 < x <= 1,
     "top_p gpu_memory_utilization vllm_gpu_memory_utilization"),
    (f"a whole number from 0 to {SEEDS:,}", lambda x: 0 <= x <= SEEDS, "seed split_seed data_seed"),
    ("a number of at most 18 digits", lambda x: True, "user target_psnr"),
]  # fmt: skip
RANGE = {name: (expected, fits) for expected, fits, names in RANGES for name in names.split()}


def in_range(name, kind=int, default=None):
    """argparse's type of the numeric flag `name`: text -> int or float in its range, finite and below 2^63.

    default: the script's, which is always taken: it may stand for something else (0: as many as fit).
    """
    expected, fits = RANGE.get(name, RANGE["user"])

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from None
        if value == default or abs(value) < 2**63 and fits(value):
            return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")

    return convert


def boolean(text):
    """argparse's type of a switch."""
    if str(text).lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return str(text).lower() in ("true", "1", "yes")


def from_json(text):
    """argparse's type of a flag that takes a mapping. Some of them also take a plain word or the path of a JSON file."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def read_yaml(file):
    """The content of a YAML file: each key once and as text, whole numbers in decimal, no aliases.

    Raises OSError, or ValueError with one line that names the line and what is wrong there.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):  # ten lines of them can unfold into gigabytes
                fault(self.peek_event(), "an alias (*...) is not read: write out what it stands for")
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            lines = {}
            for key, _ in node.value:
                name = self.construct_object(key, deep=True) if isinstance(key, yaml.ScalarNode) else key.value
                if not isinstance(name, str):
                    fault(key, f"the key {str(name)[:40]} is no text: put it in quotes")
                if name in lines:
                    fault(key, f"the key {name[:40]!r} stands in line {lines[name]} already")
                lines[name] = key.start_mark.line + 1
            return super().construct_mapping(node, deep)

        def whole(self, node):
            if not re.fullmatch(r"[-+]?\d{1,18}", node.value.replace("_", "")):  # 12:30 is 750 in YAML, and 010 is 8
                said = "expected a whole number in at most 18 decimal digits; text in quotes"
                fault(node, f"{node.value[:40]}: {said}")
            return int(node.value)

    def fault(node, said):
        raise ValueError(f"line {node.start_mark.line + 1}: {said}")

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.whole)
    with open(file, "rb") as stream:
        raw = stream.read(YAML_BYTES + 1)
    if len(raw) > YAML_BYTES:  # which takes a second to read
        raise ValueError(f"is larger than {YAML_BYTES // 1000} kB, as no file of settings is.")
    try:
        return yaml.load(raw.decode("utf-8"), Loader)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8. Save it as UTF-8.") from None
    except RecursionError:
        raise ValueError("is nested too deeply.") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"is not valid YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, KeyError, AttributeError) as error:  # the last two: a tag that does not fit, as !!bool 3
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())}") from None


def yaml_flags(parser, file) -> dict:
    """A YAML file of flags as {name: what one would type}, so that its values meet the same checks as the command line's.

    parser: common.cli's; errors end in parser.error. A null becomes the flag's default.
    """
    try:
        content = read_yaml(file)
    except OSError as error:
        parser.error(f"cannot be read: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    if not isinstance(content, dict):
        parser.error("must be a list of `flag: value` lines")
    actions, flags = {action.dest: action for action in parser._actions}, {}
    for key, value in content.items():
        if key not in actions:
            parser.error(f"unknown key {key!r}{parser.nearest(key)}")
        action, flags[key] = actions[key], [f"--{key}={value}"]
        if value is None and action.optional:
            flags[key] = []
            parser.set_defaults(**{key: None})
        elif value is None:
            parser.error(f"{key} has no value")
        elif isinstance(value, list) and action.nargs == "+":
            if any(isinstance(each, (list, dict, type(None))) for each in value):
                parser.error(f"{key} takes a list of single values")
            flags[key] = [f"--{key}", *map(str, value)]
        elif isinstance(value, dict) and action.type is from_json:
            flags[key] = [f"--{key}={json.dumps(value, default=str)}"]
        elif isinstance(value, (list, dict)):
            parser.error(f"{key} takes one value, not a {'list' if isinstance(value, list) else 'mapping'}")
        elif isinstance(value, bool) and action.type is str:
            parser.error(f"{key} is read as true or false: put the word in quotes")
    return flags
