"""What the model sees: a photo and a question as chat messages, and the answer after them, which alone is trained on.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart. The template is the
processor's own chat template, which is saved beside the adapter, as is the question (prompt.txt).
"""

from common.tokens import ids_of, report_dropped
from pictures import image_tokens, load_image

# Said, and not left to the chat template, which would put in a text of its own.
SYSTEM = "You are a helpful assistant."
# The question of render.py's spreadsheets.
PROMPT = "请读出图片中车辆仪表盘上的信息：总里程、当前速度、当前时间、当前温度、当前挡位。"
IMAGE = "<|image_pad|>"  # one in a text stands for the photo; its ids are one for each 28 x 28 pixels
END = "<|im_end|>\n"  # of a turn
EXAMPLES = 10  # rows that are too long and named; their number is said anyway


def conversation(row):
    """A row as chat messages, the photo before the prompt, as Qwen2.5-VL was trained; without a response no answer."""
    user = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    if row.get("response"):
        messages.append({"role": "assistant", "content": [{"type": "text", "text": row["response"]}]})
    return messages


def prompt_text(processor, row, tokens=1) -> str:
    """The text before the answer, with so many image tokens. One is what a processor wants: it puts in the others."""
    asked = conversation({"prompt": row["prompt"]})
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    return text.replace(IMAGE, IMAGE * tokens, 1)


def prompt_ids(processor, rows) -> list[list[int]]:
    """Token ids of each row's prompt. No picture is opened: its size and the processor's pixel cap say how many it takes."""
    cap = processor.image_processor.size["longest_edge"]
    return ids_of(processor.tokenizer, [prompt_text(processor, row, image_tokens(row["size"], cap)) for row in rows])


def answer_ids(processor, rows) -> list[list[int]]:
    """Token ids of each row's response and the end of its turn, without which the model never learns to stop."""
    texts = []
    for row in rows:
        asked, whole = prompt_text(processor, row), processor.apply_chat_template(conversation(row), tokenize=False)
        assert whole.startswith(asked), "the chat template writes the prompt differently once there is an answer"
        texts.append(whole[len(asked) :])
    return ids_of(processor.tokenizer, texts)


def encode(processor, rows):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks tokens that the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token. TRL's
    collator, which opens the pictures, makes the same (a test).
    """
    prompts, answers = prompt_ids(processor, rows), answer_ids(processor, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


# -- for a trainer


def tokenize(rows, processor, max_length, name):
    """Rows as a datasets.Dataset: input_ids, labels, digest (of the picture, as integers), image, prompt, response.

    A row over max_length is left out and reported, never cut: without its end an answer teaches not to stop, without all
    of it the loss would be 0 and say nothing.
    """
    from datasets import Dataset

    ids, labels = encode(processor, rows)
    kept = [i for i, each in enumerate(ids) if len(each) <= max_length]
    for i in sorted(set(range(len(rows))) - set(kept))[:EXAMPLES]:
        picture = ids[i].count(processor.image_token_id)
        print(f"{name}: id {rows[i]['id']}: {len(ids[i]):,} tokens, {picture:,} of them the picture's; "
              "a smaller --max_pixels takes fewer")  # fmt: skip
    report_dropped(len(rows), len(kept), max_length, name)
    columns = {"input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]}
    # As numbers, so that the run's record of its data covers the pictures, too.
    columns["digest"] = [list(bytes.fromhex(rows[i]["sha256"])) for i in kept]
    columns |= {field: [rows[i][field] for i in kept] for field in ("image", "prompt", "response")}
    return Dataset.from_dict(columns)


def with_pictures(dataset, backend):
    """The dataset as a collator wants it: a picture is opened when its row is asked for, and not kept."""

    def open_them(batch):
        pictures = [[load_image(path)] for path in batch["image"]]
        pairs = zip(batch["prompt"], batch["response"], strict=True)
        whole = [conversation({"prompt": prompt, "response": response}) for prompt, response in pairs]
        if backend == "unsloth":  # its collator finds the answer by the turn's header
            return {"images": pictures, "messages": whole}
        return {
            "images": pictures,
            "prompt": [talk[:-1] for talk in whole],
            "completion": [talk[-1:] for talk in whole],
        }

    return dataset.with_transform(open_them)


def collator(model, processor, backend, max_length):
    """What makes a batch of rows. None: TRL's own, which trains on the completion and on nothing else."""
    if backend != "unsloth":
        return None
    from unsloth.trainer import UnslothVisionDataCollator

    return UnslothVisionDataCollator(
        model,
        processor,
        max_seq_length=max_length,
        resize="max",  # its default shrinks every photo to 512 pixels wide, and inference then sees another picture
        train_on_responses_only=True,  # its default also trains on the question
        instruction_part="<|im_start|>user\n",
        response_part="<|im_start|>assistant\n",
    )
