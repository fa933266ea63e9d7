"""A vllm.LLM of transformers: as much of vLLM 0.26's interface as this repository uses, for tests and benches on a CPU.

install(sys.modules) puts it where `import vllm` finds it. It is as strict as vLLM where that has rules: arguments that it does
not know, texts over max_model_len, LoRA above max_lora_rank, answers while it sleeps. What sleeps has forgotten its weights.
And it stops where vLLM would go on with a wrong answer: new weights need reset_prefix_cache().
"""

import types
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import torch

KNOWN = {
    "dtype", "skip_tokenizer_init", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization",
    "enable_sleep_mode", "enable_prefix_caching", "enable_lora", "max_lora_rank", "enforce_eager", "logprobs_mode", "seed",
    "tensor_parallel_size", "model_impl", "distributed_executor_backend", "quantization", "trust_remote_code",
}  # fmt: skip


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: list | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    seed: int | None = None

    def __post_init__(self):
        if not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1:
            raise ValueError(f"min_tokens {self.min_tokens}, max_tokens {self.max_tokens}")
        if not 0 <= self.temperature <= 2 or (self.top_p, self.top_k, self.min_p, self.repetition_penalty) != (
            1,
            0,
            0,
            1,
        ):
            raise ValueError("the whole distribution, at a temperature of at most 2")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """model: a folder. how: what it was made with. loaded: names of the weights of each load. slept: how often."""

    def __init__(self, model, **how):
        from transformers import AutoModelForCausalLM

        if strange := set(how) - KNOWN:
            raise TypeError(f"EngineArgs has no {sorted(strange)}")
        self.path, self.how, self.loaded, self.slept = model, how, [], 0
        dtype = how.get("dtype", "auto")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.tuned, self.awake, self.stale = {}, {"weights", "kv_cache"}, False
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, weights):
        mine, names = dict(self.model.named_parameters()), []
        for name, value in weights:
            assert not value.requires_grad and value.dtype == mine[name].dtype
            mine[name].data.copy_(value)
            names.append(name)
        self.loaded.append(names)
        self.stale = True

    def reset_prefix_cache(self):
        self.stale = False

    def sleep(self, level):
        assert self.how["enable_sleep_mode"] and level == 2
        self.slept += 1
        self.awake = set()
        for each in self.model.parameters():
            each.data.zero_()

    def wake_up(self, tags):
        self.awake |= set(tags)

    def _with(self, request):
        if request is None:
            return self.model
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if request.lora_path not in self.tuned:
            base = AutoModelForCausalLM.from_pretrained(self.path, dtype=self.model.dtype)
            tuned = PeftModel.from_pretrained(base, request.lora_path).eval()
            rank = max(each.r for each in tuned.peft_config.values())
            if not self.how.get("enable_lora") or rank > self.how.get("max_lora_rank", 16):
                raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank")
            self.tuned[request.lora_path] = tuned
        return self.tuned[request.lora_path]

    @torch.no_grad()
    def generate(self, prompts, sampling_params, lora_request=None, use_tqdm=True):
        assert self.awake == {"weights", "kv_cache"} and not self.stale, "asleep, or with the cache of other weights"
        how = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        model = self._with(lora_request)
        return [self._one(model, each["prompt_token_ids"], one) for each, one in zip(prompts, how, strict=True)]

    def _one(self, model, prompt, how):
        most = self.how.get("max_model_len") or 10**9
        if len(prompt) >= most or not prompt:
            raise ValueError(f"The prompt has {len(prompt)} tokens, max_model_len is {most}")
        if self.how.get("skip_tokenizer_init") and how.detokenize:
            raise ValueError("no tokenizer to detokenize with")
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        stop = set(how.stop_token_ids or ()) | (set() if how.ignore_eos else ends)
        draw = None if how.seed is None else torch.Generator(model.device).manual_seed(how.seed)
        ids, cache, made, told = torch.tensor([prompt], device=model.device), None, [], []
        while len(made) < how.max_tokens and len(prompt) + len(made) < most:
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = out.logits[0, -1].float() / (how.temperature or 1.0), out.past_key_values
            scores = logits.log_softmax(-1)
            if len(made) < how.min_tokens:
                logits[list(stop | ends)] = -torch.inf
            if how.temperature:
                token = torch.multinomial(logits.softmax(-1), 1, generator=draw).item()
            else:
                token = logits.argmax().item()
            made.append(token)
            if how.logprobs is not None:
                told.append({token: SimpleNamespace(logprob=scores[token].item(), rank=1)})
            if token in stop:
                break
            ids = torch.tensor([[token]], device=model.device)
        output = SimpleNamespace(token_ids=tuple(made), logprobs=told or None)
        return SimpleNamespace(prompt_token_ids=list(prompt), outputs=[output])


def install(modules):
    """Put vllm into `modules` (sys.modules); returns the LLMs that will be made, in their order."""
    made = []

    class Kept(LLM):
        def __init__(self, model, **how):
            super().__init__(model, **how)
            made.append(self)

    names = {
        "vllm": dict(LLM=Kept, SamplingParams=SamplingParams, __version__="0.26.0"),
        "vllm.lora": {},
        "vllm.lora.request": dict(LoRARequest=LoRARequest),
        "vllm.distributed": {},
        "vllm.distributed.parallel_state": dict(cleanup_dist_env_and_memory=lambda: None),
    }
    for name, content in names.items():
        modules[name] = types.ModuleType(name)
        modules[name].__spec__ = ModuleSpec(name, None)
        vars(modules[name]).update(content)
    return made
