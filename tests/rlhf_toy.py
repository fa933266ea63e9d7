"""What the tests of rlhf_ppo and of its engines share (fixtures `rlhf` and `toy` of conftest.py): a tiny policy and its judge."""

import json

from common.cli import LINEAR

EOS, PAD = 2, 0
FILES = (
    "prompt", "sources", "data", "gold", "stage", "estimate", "backbone", "scoring", "engine", "sampler", "rollout", "watch",
    "plots", "merge", "train_reward", "train_ppo", "train_grpo", "best_of_n", "compare",
)  # fmt: skip


def model_of(folder):
    """A random model of 64 words whose logits are wide enough for a LoRA to move."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=64, eos_token_id=EOS, pad_token_id=PAD, num_key_value_heads=2, **shape)
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 10  # a random head is near-uniform: no LoRA could move what is sampled
    model.save_pretrained(folder)


def judge_of(rlhf, model, folder):
    """A random reward model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    judge = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    judge = get_peft_model(judge, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=4, target_modules=LINEAR))
    for name, parameter in judge.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    judge.save_pretrained(folder)
    made = dict(model="toy", fingerprint=rlhf.stage.fingerprint(model), quantization="none", sft_mean=0.1, sft_std=0.5)
    (folder / "reward.json").write_text(json.dumps(made))
