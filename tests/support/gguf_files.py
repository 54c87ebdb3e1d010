"""Tiny GGUF files with random weights: whole ones that llama.cpp runs, sharded, truncated and damaged ones."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

EMBEDDING, HEADS, FEED_FORWARD, CONTEXT = 32, 4, 64, 512
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_tiny(
    path: Path,
    *,
    arch: str = "llama",
    layers: int = 1,
    numbers: dict[str, int | float] | None = None,
    without: str = "",
    **strings: str,
) -> Path:
    """Write a model of a few kilobytes; `strings` are further keys of its header, with `__` for dots.

    `without`: a tensor that is left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    _describe(writer, layers, strings)
    for key, number in (numbers or {}).items():
        (writer.add_int32 if isinstance(number, int) else writer.add_float32)(key, number)  # type: ignore[arg-type]
    for name, values in _tensors(layers):
        if name != without:
            writer.add_tensor(name, values)
    _finish(writer)
    return path


def write_sharded(folder: Path, stem: str) -> list[Path]:
    """Write a model of two layers in three files, as llama.cpp's own splitter lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(2)
    cuts = [tensors[:5], tensors[5:12], tensors[12:]]
    paths = []
    for number, part in enumerate(cuts):
        path = folder / f"{stem}-{number + 1:05}-of-{len(cuts):05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            _describe(writer, 2, {})
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(cuts))
        writer.add_int32("split.tensors.count", len(tensors))
        for name, values in part:
            writer.add_tensor(name, values)
        _finish(writer)
        paths.append(path)
    return paths


def truncate(path: Path, by: int = 100) -> Path:
    """Cut off the end of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - by)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, layers: int, strings: dict[str, str]) -> None:
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{b:02X}>".encode() for b in range(256))]
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in {"tokenizer__chat_template": TEMPLATE, **strings}.items():
        writer.add_string(key.replace("__", "."), value)


def _tensors(layers: int) -> list[tuple[str, Any]]:
    random = np.random.default_rng(1)

    def weights(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)

    ones = np.ones(EMBEDDING, dtype=np.float32)
    tensors = [("token_embd.weight", weights(259, EMBEDDING)), ("output_norm.weight", ones)]
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            tensors.append((f"blk.{i}.{name}.weight", ones))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors.append((f"blk.{i}.{name}.weight", weights(EMBEDDING, EMBEDDING)))
        for name in ("ffn_gate", "ffn_up"):
            tensors.append((f"blk.{i}.{name}.weight", weights(FEED_FORWARD, EMBEDDING)))
        tensors.append((f"blk.{i}.ffn_down.weight", weights(EMBEDDING, FEED_FORWARD)))
    return tensors
