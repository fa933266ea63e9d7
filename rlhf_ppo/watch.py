"""What one watches of train_grpo.py: numbers in metrics.jsonl, plots."""

from transformers import TrainerCallback

from stage import ends, tidy

# Title of a plot: metric -> its label.
PANELS = {
    "reward: score in stds - EOS penalty": {"reward": "reward", "eval_score": "held-out score"},
    "KL from the reference, per token": {"kl": "kl"},
    "entropy, nats per token": {"entropy": "entropy"},
    "length, tokens": {"completions/mean_length": "length"},
    "share of groups whose rewards are all equal": {"frac_reward_zero_std": "share"},
    "share of answers cut off": {"completions/clipped_ratio": "share"},
}


class Watcher(TrainerCallback):
    """For a run that is an own loop to common/runs.py: its stages are all resumed alike, by inputs and not by data set."""

    def __init__(self, run):
        self.run = run

    def on_log(self, args, state, control, logs=None, **_):
        if "reward" in logs:
            self.run.log(state.global_step, tidy(logs))

    def on_save(self, args, state, control, **_):
        self.run.plot("grpo.png", PANELS, more=ends(self.run, state.max_steps))
