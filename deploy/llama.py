"""llama.cpp without a compiler: logits of a whole text in one pass, and its chat server, both from the package xllamacpp.

The library is called through ctypes: the package's own interface is the server, which tells of a prompt's tokens nothing.
Structures are handed over as the library's own defaults with a few fields changed, whose places are checked at loading.
"""

import contextlib
import ctypes
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy

VERSION = "2026.10.11549"  # the one whose structures are known


class Model(ctypes.Structure):
    """llama_model_params, larger than it is: a structure that stands last on the stack may be."""

    _fields_ = [("content", ctypes.c_uint8 * 512)]


class Context(ctypes.Structure):
    """llama_context_params: the fields that are set here, then the rest."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq",
                "n_outputs_max", "n_outputs_max_per_seq", "n_threads", "n_threads_batch")]  # fmt: skip
    _fields_ += [("rest", ctypes.c_uint8 * 476)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.c_void_p), ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p),
                ("logits", ctypes.POINTER(ctypes.c_int8))]  # fmt: skip


def installed():
    """The package, or SystemExit with what to do."""
    try:
        import xllamacpp
    except ImportError:
        raise SystemExit(f"llama.cpp is not installed here: pip install xllamacpp=={VERSION}") from None
    return xllamacpp


def library():
    found = ctypes.CDLL(installed().xllamacpp.__file__)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_model_default_params", Model, []),
        ("llama_context_default_params", Context, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Model]),
        ("llama_init_from_model", pointer, [pointer, Context]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_vocab_eos", ctypes.c_int32, [pointer]),
        ("llama_vocab_is_eog", ctypes.c_bool, [pointer, ctypes.c_int32]),
        ("llama_n_ctx", ctypes.c_uint32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_seq_rm", ctypes.c_bool, [pointer, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]),
        ("llama_set_adapters_lora", ctypes.c_int32, [pointer, pointer, ctypes.c_size_t, pointer]),
        ("llama_log_set", None, [pointer, pointer]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    defaults = found.llama_context_default_params()
    got = (defaults.n_ctx, defaults.n_batch, defaults.n_ubatch, defaults.n_seq_max, defaults.n_threads)
    if got != (512, 2048, 512, 1, 4):
        raise SystemExit(f"this xllamacpp has other structures ({got}): pip install xllamacpp=={VERSION}")
    found.llama_log_set(QUIET, None)
    return found


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class File:
    """A GGUF file in llama.cpp. longest: tokens of the longest text. lora: an adapter's GGUF to be put on it."""

    def __init__(self, file: Path, longest: int, threads: int, lora: Path | None = None):
        self.lib, self.read = library(), []
        self.model = self.lib.llama_model_load_from_file(str(file).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{file}: llama.cpp cannot load it. Export it again.")
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, longest)
        params.n_outputs_max = params.n_outputs_max_per_seq = 0  # as many as there are tokens
        params.n_threads = params.n_threads_batch = threads
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"{file}: llama.cpp has no memory for {longest} tokens.")
        vocab = self.lib.llama_model_get_vocab(self.model)
        self.size, self.eos = self.lib.llama_vocab_n_tokens(vocab), self.lib.llama_vocab_eos(vocab)
        self.ends = lambda token: bool(self.lib.llama_vocab_is_eog(vocab, token))
        if lora:
            adapter = self.lib.llama_adapter_lora_init(self.model, str(lora).encode())
            if not adapter:
                raise SystemExit(f"{lora}: llama.cpp cannot load it onto {file}.")
            adapters, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
            self.lib.llama_set_adapters_lora(self.context, adapters, 1, scales)

    def logits(self, ids: list[int], first: int) -> numpy.ndarray:
        """Logits (len(ids) - first, vocabulary), float32, after each token from ids[first] on, in one pass. The
        library's own memory: the next call writes over it.

        What a text begins with before `first`, as the one before did, is not computed again.
        """
        known = len(os.path.commonprefix([ids[:first], self.read]))
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, known, -1)
        rest = ids[known:]
        tokens = (ctypes.c_int32 * len(rest))(*rest)
        wanted = (ctypes.c_int8 * len(rest))(*(known + i >= first for i in range(len(rest))))
        batch = Batch(len(rest), tokens, None, None, None, None, wanted)
        if code := self.lib.llama_decode(self.context, batch):
            raise SystemExit(f"llama.cpp could not compute a text of {len(ids)} tokens (code {code}).")
        self.read = ids
        rows = len(ids) - first
        return numpy.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (rows, self.size))

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


@contextlib.contextmanager
def server(file: Path, context: int, threads: int, template: str | None = None, mmproj: Path | None = None):
    """llama.cpp's own server on 127.0.0.1 -> ask(path, body): its answer as JSON. template None: the file's own."""
    package = installed()
    params = package.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), context, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port, params.hostnames = 0, ["127.0.0.1"]
    params.warmup, params.verbosity = False, -1
    if template is not None:
        params.chat_template = template
    if mmproj:
        params.mmproj.path = str(mmproj)
    running = package.Server(params)
    address = running.listening_address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine

    def ask(path, body):
        request = urllib.request.Request(address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})  # fmt: skip
        try:
            with opener.open(request, timeout=600) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise SystemExit(f"llama.cpp's server, {path}: {error.read().decode(errors='replace')[:300]}") from None

    yield ask
    del running


def prompt_ids(ask, messages) -> list[int]:
    """The token ids of what the chat API makes of messages."""
    text = ask("/apply-template", {"messages": messages})["prompt"]
    return ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
