"""What GRPO trains on: the completions of a step. Imports torch: for after the parsing.

TRL's own way through model.generate launches thousands of small kernels per token. Here a token is one recorded step on a
GPU (common/speed/graph.py), and all of a step's completions are one call; or vLLM, where the trainer has it, writes them.
r1_grpo and rlhf_ppo have this same file.
"""

import os
import time

from common.answers import generate
from common.speed import graph

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func may change; TRL is pinned


class Rollout:
    """TRL's rollout_func. tokens, seconds: what was written and how long it took, since somebody set them to 0.

    check: called with (trainer, prompts, completions, vLLM's log-probabilities of their tokens) after vLLM has written.
    """

    tokens, seconds, check = 0, 0.0, None

    def __call__(self, prompts, trainer):
        """prompts: texts, or conversations (lists of messages), each repeated num_generations times in a row.

        Returns token ids, the completions' up to and with their end token. logprobs: vLLM's, for TRL's importance
        correction; of our own decoder none: TRL takes those of the backward pass, as it does for its own samples.
        """
        tokenizer = trainer.processing_class
        if not isinstance(prompts[0], str):
            prompts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompts, add_special_tokens=False).input_ids
        start, logprobs = time.perf_counter(), None
        if trainer.use_vllm:  # TRL has given it the weights of this step before it asked us
            group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
            _, made, logprobs, _ = trainer.vllm_generation.generate(ids, None, group)
            made = [list(row) for row in made]
            logprobs = [[each[0] for each in row] for row in logprobs]  # the sampled token's, and no other's
        else:
            how = dict(
                temperature=trainer.temperature,
                top_k=trainer.top_k,
                top_p=trainer.top_p,
                repetition_penalty=trainer.repetition_penalty,
                return_ids=True,
                decode=graph.decode,
            )
            made = generate(trainer.model, tokenizer, ids, trainer.max_completion_length, len(ids), **how)
        self.seconds += time.perf_counter() - start
        self.tokens += sum(map(len, made))
        if logprobs and self.check:
            self.check(trainer, ids, made, logprobs)
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": logprobs}
