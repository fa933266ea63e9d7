"""Qwen2.5-VL with its processor: loading, LoRA where it is wanted, answers to pictures, and the miniature of --demo."""

import contextlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from windows import attend_at_once

from common import models
from common.cli import arg
from common.models import ModelArgs, choose_quantization, find_model, import_backend, load_tokenizer
from data import conversation
from fields import as_course, as_json

HERE = Path(__file__).resolve().parent
MINIATURE = HERE / "miniature"  # a small reader, made by pretrain.py
MIN_PIXELS = 56 * 56
WINDOW_PIXELS = 336 * 168  # render.py's pictures as they are


@dataclass
class VisionArgs(ModelArgs):
    """Flags of train.py about the model: which parts of it LoRA may change."""

    lora_r: int = arg(16, "rank of the LoRA update")
    lora_alpha: int = arg(16, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = arg(0.0, "0 is what Unsloth's fast path needs")
    finetune_vision_layers: bool = arg(
        True, "LoRA in the image encoder, too; vLLM leaves such adapters out in silence: merge before serving"
    )
    finetune_language_layers: bool = arg(True, "LoRA in the language model")
    finetune_attention_modules: bool = arg(True, "LoRA in attention: q, k, v, o; qkv and proj in the encoder")
    finetune_mlp_modules: bool = arg(True, "LoRA in the MLPs: gate, up, down")


# -- the processor


def load_processor(path, max_pixels=None):
    """Tokenizer and image processor of a model's or adapter's folder. max_pixels: None takes what the folder says.

    Built from its two parts: AutoProcessor also wants a video processor, which needs torchvision, and where it cannot
    have one it returns a bare tokenizer without a word. The PIL image processor is the same on every machine.
    """
    from transformers import Qwen2_5_VLProcessor as Whole
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # Under its own name, since that name is saved and is how other programs find the class.
    class Qwen2_5_VLProcessor(Whole):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template or "<|image_pad|>" not in tokenizer.get_vocab():
        raise SystemExit(f"{path}: no Qwen2.5-VL: its tokenizer has no chat template or no <|image_pad|>.")
    max_pixels = max_pixels or saved_max_pixels(Path(path))
    # As a fresh dict: the class would otherwise write the cap into its own default.
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels})
    return Qwen2_5_VLProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def saved_max_pixels(path):
    """The pixel cap that an adapter was trained with, as its folder says."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).is_file():
            saved = json.loads((path / name).read_text(encoding="utf-8"))
            saved = saved.get("image_processor", saved)
            found = (saved.get("size") or {}).get("longest_edge") or saved.get("max_pixels")
            if found:
                return found
    raise SystemExit(f"{path} does not say which pixel cap it was trained with: give --max_pixels.")


# -- the model


def lora_targets(args):
    """The layers that get LoRA, as a regular expression over module names.

    The usual list of names would hit gate, up and down of the encoder's MLPs by accident (they have the same names) and
    miss its attention (qkv, proj). The merger between encoder and language model stays frozen.
    """
    text, vision = [], []
    if args.finetune_attention_modules:
        text.append(r"self_attn\.(?:q|k|v|o)_proj")
        vision.append(r"attn\.(?:qkv|proj)")
    if args.finetune_mlp_modules:
        text.append(r"mlp\.(?:gate|up|down)_proj")
        vision.append(r"mlp\.(?:gate|up|down)_proj")
    parts = []
    if args.finetune_language_layers and text:
        parts.append(rf"language_model\.layers\.\d+\.(?:{'|'.join(text)})")
    if args.finetune_vision_layers and vision:
        parts.append(rf"visual\.blocks\.\d+\.(?:{'|'.join(vision)})")
    if not parts:
        raise SystemExit(
            "nothing to train: --finetune_vision_layers and --finetune_language_layers, or both kinds of modules, are off."
        )
    return rf"(?:.*\.)?(?:{'|'.join(parts)})"


def load_base(path, backend, four_bit, dtype, max_length):
    """The base model, on the GPU if there is one. max_length: the longest row, which Unsloth has to know."""
    import torch

    if import_backend(backend) == "unsloth":
        from unsloth import FastVisionModel

        options = dict(max_seq_length=max_length, dtype=dtype, load_in_4bit=four_bit)
        return attend_at_once(FastVisionModel.from_pretrained(str(path), **options)[0])
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        str(path),
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4) if four_bit else None,
        device_map={"": torch.cuda.current_device()} if torch.cuda.is_available() else None,
        use_safetensors=True,
    )
    return attend_at_once(model)


def load_model(model_args, config, max_length):
    """A base model with fresh LoRA adapters, ready for a trainer. config: the trainer's; max_length: the longest row."""
    import torch
    from transformers import set_seed

    targets = lora_targets(model_args)
    path = find_model(model_args)
    four_bit = choose_quantization(model_args.quantization, path)
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32
    model = load_base(path, model_args.backend, four_bit, dtype, max_length)
    set_seed(config.seed)  # LoRA's A matrices are random
    lora = dict(
        r=model_args.lora_r, lora_alpha=model_args.lora_alpha, lora_dropout=model_args.lora_dropout, bias="none"
    )
    backend = import_backend(model_args.backend)
    if backend == "unsloth":
        from unsloth import FastVisionModel

        names = (
            "finetune_vision_layers",
            "finetune_language_layers",
            "finetune_attention_modules",
            "finetune_mlp_modules",
        )
        lora |= {name: getattr(model_args, name) for name in names}
        lora |= dict(use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False)
        model = FastVisionModel.get_peft_model(model, **lora, random_state=config.seed)
        FastVisionModel.for_training(model)
    else:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **lora))
    trained, total = model.get_nb_trainable_parameters()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    seen = sum(".visual." in name for name in names) // 2
    print(f"backend {backend}, {'4-bit' if four_bit else dtype} weights")
    print(f"LoRA r{model_args.lora_r}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%}), in "
          f"{len(names) // 2 - seen} layers of the language model and {seen} of the image encoder")  # fmt: skip
    return model


def load_adapter(adapter, model_args, max_pixels=None):
    """A base model with a trained adapter, for inference, and the adapter's processor with its pixel cap."""
    return models.load_adapter(adapter, model_args, 4096, load_base, lambda folder: load_processor(folder, max_pixels))


@contextlib.contextmanager
def inference(model, backend):
    """Switch a model to generation and back."""
    training, unsloth = model.training, import_backend(backend) == "unsloth"
    if unsloth:
        from unsloth import FastVisionModel

        FastVisionModel.for_inference(model)
    model.eval()
    yield
    if unsloth and training:
        FastVisionModel.for_training(model)
    model.train(training)


def answers(model, processor, pictures, prompts, max_new_tokens=200, batch_size=8, backend="auto"):
    """The model's answer to each prompt about each picture, greedily, in order.

    pictures: PIL images, or functions that open one, so that a thousand of them are never in memory together.
    """
    import torch
    from tqdm import tqdm

    made, tokenizer = [], processor.tokenizer
    with inference(model, backend), torch.no_grad():
        for start in tqdm(range(0, len(prompts), batch_size), desc="answers", leave=False):
            texts = [
                processor.apply_chat_template(conversation(prompt), add_generation_prompt=True)
                for prompt in prompts[start : start + batch_size]
            ]
            images = [[each() if callable(each) else each] for each in pictures[start : start + batch_size]]
            # Padding on the left: a decoder goes on from the last position.
            batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
            output = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # Qwen's own settings have 1.05, which is not greedy any more
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[:, batch["input_ids"].shape[1] :]
            made += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return made


# -- the miniature

SHAPES = {
    # 1.8 million parameters: for tests.
    "tiny": dict(text=dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                           num_key_value_heads=2),
                 vision=dict(hidden_size=128, intermediate_size=256, depth=4, num_heads=4)),
    # 7.9 million: learns to read in minutes on a GPU (pretrain.py), 16 MB in bfloat16.
    "reader": dict(text=dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
                             num_key_value_heads=4),
                   vision=dict(hidden_size=256, intermediate_size=640, depth=4, num_heads=8)),
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
VOCABULARY = 640


def miniature_tokenizer():
    """Qwen's kind of tokenizer (byte pairs, digits one by one) with a small vocabulary, trained on dashboards' answers."""
    import trl
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    import pretrain
    from render import PROMPT, random_facts

    rng, texts = random.Random(0), ["system\nYou are a helpful assistant.", "user\n", "assistant\n", PROMPT]
    for _ in range(500):
        facts = random_facts(rng)
        texts += [as_course(facts), as_json(facts), *pretrain.lesson(rng, facts)]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    # TRL ships Qwen2.5-VL's own template.
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def build_miniature(folder, shape="tiny", seed=0):
    """A Qwen2.5-VL with random weights, and its processor, in `folder`. Needs no network. Returns the folder."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = Path(folder)
    tokenizer = miniature_tokenizer()
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    text, vision = SHAPES[shape]["text"], SHAPES[shape]["vision"]
    half_head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half_head // 4, 3 * half_head // 8, 3 * half_head // 8]  # time, height, width; their sum is half a head
    config = Qwen2_5_VLConfig(
        text_config=text
        | dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            tie_word_embeddings=True,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        # Every block sees the whole picture: it has 288 patches, and windows would only cut numbers in two.
        vision_config=vision
        | dict(out_hidden_size=text["hidden_size"], fullatt_block_indexes=list(range(vision["depth"]))),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    load_processor(folder, max_pixels=WINDOW_PIXELS).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    return folder
