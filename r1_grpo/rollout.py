"""What GRPO trains on: the completions of a step. Imports torch: for after the parsing.

TRL's own way through model.generate launches thousands of small kernels per token. Here a token is one recorded step on a
GPU (common/speed/graph.py), and all of a step's completions are one call. r1_grpo and rlhf_ppo have this same file.
"""

import os
import time

from common.answers import generate
from common.speed import graph

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func may change; TRL is pinned


class Rollout:
    """TRL's rollout_func. tokens, seconds: what was written and how long it took, since somebody set them to 0."""

    tokens, seconds = 0, 0.0

    def __call__(self, prompts, trainer):
        """prompts: texts, or conversations (lists of messages), each repeated num_generations times in a row.

        Returns token ids, the completions' up to and with their end token. No logprobs: TRL takes those of the
        backward pass, as it does for its own samples.
        """
        tokenizer = trainer.processing_class
        if not isinstance(prompts[0], str):
            prompts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompts, add_special_tokens=False).input_ids
        how = dict(
            temperature=trainer.temperature,
            top_k=trainer.top_k,
            top_p=trainer.top_p,
            repetition_penalty=trainer.repetition_penalty,
            return_ids=True,
            decode=graph.decode,
        )
        start = time.perf_counter()
        made = generate(trainer.model, tokenizer, ids, trainer.max_completion_length, len(ids), **how)
        self.seconds += time.perf_counter() - start
        self.tokens += sum(map(len, made))
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": None}
