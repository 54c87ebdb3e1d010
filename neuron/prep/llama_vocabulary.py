"""Vocabularies through llama.cpp, loaded vocabulary-only."""

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import llama_cpp
import msgspec

from common.engine_options import EngineOptions, SamplingDefaults
from common.ids import digest
from common.messages import ModelFacts
from neuron.prep import llama_said
from neuron.prep.llama_header import check_header, kv_bytes_per_token, numbers, open_header, parts, tensor_bytes
from neuron.prep.llama_measure import kv_overrides, measure
from neuron.prep.llama_said import build
from neuron.prep.vocabulary import Gap, UnusableFile

__all__ = ["LlamaVocabulary", "build", "open_vocabulary"]

NO_OPTIONS = EngineOptions()
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n", "xtc_probability": "xtc_probability", "xtc_threshold": "xtc_threshold",
    "mirostat": "mirostat", "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta",
}  # fmt: skip
"""Keys general.sampling.… of a file, and what they are called here."""


def open_vocabulary(path: str, options: EngineOptions = NO_OPTIONS) -> "LlamaVocabulary":
    """Open a GGUF. Raises UnusableFile: no GGUF, shorter than its header says, unknown to this llama.cpp; OSError."""
    check_header(path)
    with open_header(path) as header:
        kv_bytes = kv_bytes_per_token(header)
        files = parts(path, (numbers(header, b"split.count") or [1])[0])
    sizes: dict[str, int] = {}
    for file in files:
        if file != path:
            check_header(file)
        of_file = tensor_bytes(file)
        sizes |= {**of_file, "": of_file[""] + sizes.get("", 0)}
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    overrides = kv_overrides(options.override_kv)
    if options.override_kv:
        params.kv_overrides = overrides
    llama_said.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise UnusableFile(f"llama.cpp refuses it: {llama_said.complaint()}")
    return LlamaVocabulary(path, model, sizes, kv_bytes)


class LlamaVocabulary:
    """One opened file."""

    def __init__(self, path: str, model: Any, sizes: dict[str, int], kv_bytes: int) -> None:
        """`sizes`: of the tensors, by name, in bytes; of all files under ""."""
        self._path = path
        self._sizes = sizes
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._buffer = ctypes.create_string_buffer(256)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.bos_text = self._special(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos_text = self._special(llama_cpp.llama_vocab_eos(self._vocab))
        self.bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.gap = self._gap()
        template = llama_cpp.llama_model_chat_template(model, None)
        self.chat_template = template.decode(errors="replace") if template else None
        arch = self._meta("general.architecture") or "unknown"
        self.facts = ModelFacts(
            architecture=arch,
            name=self._meta("general.name") or "",
            file_bytes=sizes[""],
            context_train=int(self._meta(f"{arch}.context_length") or 0),
            kv_bytes_per_token=kv_bytes,
            layers=int(self._meta(f"{arch}.block_count") or 0),
            embedding=int(self._meta(f"{arch}.embedding_length") or 0),
            vocabulary=self.size,
            capabilities=self._capabilities(arch),
            vocab_fingerprint=self._fingerprint(),
            sampling=self._sampling(),
        )

    def measure(self, options: EngineOptions) -> ModelFacts:
        """Return the facts with what llama.cpp makes of the file, given the options. Raises UnusableFile."""
        return measure(self._path, self.facts, self._sizes, options)

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return token ids."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            ids = (ctypes.c_int32 * -count)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, -count, add_special, parse_special)
        return ids[:count]

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens, control tokens included."""
        return b"".join(map(self._piece, tokens))

    def _piece(self, token: int) -> bytes:
        length = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, True)
        buffer = self._buffer
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -length, 0, True)
        return bytes(buffer.raw[:length])

    def pair(self, query: str, document: str) -> list[int]:
        """Return a query and a document by the file's template for that, else with its marks between them."""
        vocab = self._vocab
        template = llama_cpp.llama_model_chat_template(self._model, b"rerank")
        if template:
            text = template.decode(errors="replace").replace("{query}", query).replace("{document}", document)
            return self.tokenise(text, add_special=True, parse_special=True)
        begin, sep = int(llama_cpp.llama_vocab_bos(vocab)), int(llama_cpp.llama_vocab_sep(vocab))
        end = int(llama_cpp.llama_vocab_eos(vocab))
        ends = [sep if end < 0 else end] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
        tokens = [begin] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
        tokens += self.tokenise(query, add_special=False, parse_special=False) + ends
        tokens += [sep] if llama_cpp.llama_vocab_get_add_sep(vocab) else []
        tokens += self.tokenise(document, add_special=False, parse_special=False) + ends
        return [t for t in tokens if t >= 0]

    def can_parse(self, gbnf: str) -> bool:
        """Say whether llama.cpp can read a grammar."""
        sampler = llama_cpp.llama_sampler_init_grammar(self._vocab, gbnf.encode(), b"root")
        if sampler:
            llama_cpp.llama_sampler_free(sampler)
        return bool(sampler)

    def close(self) -> None:
        """Free the model."""
        llama_cpp.llama_model_free(self._model)

    def _special(self, token: int) -> str:
        return "" if token < 0 else llama_cpp.llama_vocab_get_text(self._vocab, token).decode(errors="replace")

    def _meta(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(1024)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else None

    def _gap(self) -> Gap | None:
        kinds = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        prefix, suffix, middle = (int(kind(self._vocab)) for kind in kinds)
        if min(prefix, suffix, middle) < 0:
            return None
        file = int(llama_cpp.llama_vocab_fim_sep(self._vocab))
        return Gap(prefix, suffix, middle, file if file >= 0 else None)

    def _sampling(self) -> SamplingDefaults:
        """Read the file's own defaults; one that cannot be is passed over."""
        given: dict[str, object] = {}
        for key, name in _SAMPLING.items():
            text = self._meta(f"general.sampling.{key}")
            if text is not None:
                with suppress(ValueError, msgspec.ValidationError):
                    value = int(text) if name in ("top_k", "repeat_last_n", "mirostat") else float(text)
                    msgspec.convert({name: value}, SamplingDefaults)
                    given[name] = value
        return msgspec.convert(given, SamplingDefaults)

    def _capabilities(self, arch: str) -> list[str]:
        """Tell from how the file pools, or that its attention looks ahead, what it was trained for."""
        pooling = self._meta(f"{arch}.pooling_type")
        if pooling == str(llama_cpp.LLAMA_POOLING_TYPE_RANK):
            return ["rerank"]
        is_pooled = pooling not in (None, str(llama_cpp.LLAMA_POOLING_TYPE_NONE))
        if is_pooled or self._meta(f"{arch}.attention.causal") == "false":
            return ["embeddings"]
        return ["chat", "completion"]

    def _fingerprint(self) -> str:
        """Return an identity of the token texts: streams can resume by ids only between equal ones."""
        texts = (llama_cpp.llama_vocab_get_text(self._vocab, i) for i in range(self.size))
        return digest(b"\0".join(t or b"" for t in texts))
