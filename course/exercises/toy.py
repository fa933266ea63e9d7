"""A tokenizer that can be read: a token is a word with the blank before it, a sign, or a run of line breaks."""

import re
from types import SimpleNamespace

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECE = re.compile(r"<\|\w+\|>|\n+| ?[^\W_]+| ?[^\w\s]|\s|_")


class Tokenizer:
    """What the folders' prompt.py needs of a tokenizer. "\\n\\n" is one token, as in Qwen's: texts that are joined may
    have other tokens than texts that are not."""

    def __init__(self):
        self.words = list(SPECIAL)
        self.pad_token_id, self.eos_token_id, self.eos_token = 0, 2, SPECIAL[2]
        self.unk_token_id, self.unk_token = None, None
        self.backend_tokenizer = self

    def encode_batch_fast(self, texts, add_special_tokens=False):
        return [SimpleNamespace(ids=self.encode(text)) for text in texts]

    def encode(self, text):
        return [self.convert_tokens_to_ids(piece) for piece in PIECE.findall(text)]

    def convert_tokens_to_ids(self, word):
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.words[i] for i in ids if not skip_special_tokens or i >= len(SPECIAL))

    def apply_chat_template(self, messages, add_generation_prompt=False, tokenize=True, return_dict=False):
        text = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
        text += "<|im_start|>assistant\n" if add_generation_prompt else ""
        return self.encode(text) if tokenize else text
