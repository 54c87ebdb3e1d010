"""Models of a few hundred kilobytes with random weights, one for each kind of memory llama.cpp has."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

VOCABULARY = 512
WIDTH, HEADS, FEED_FORWARD, LAYERS = 64, 4, 96, 4
WINDOW = 32
"""Tokens the window model's local layers look back."""
EXPERTS = 4
"""Of each layer of the mixture."""
KINDS = ("llama", "gemma3", "mamba", "lfm2")
"""A cell for each token; a sliding window; a state; states and cells."""

FILL_IN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")
"""The first tokens after the bytes, in a model that fills in."""
FIRST_FILL_IN = 259

_HEAD = WIDTH // HEADS


def write_tiny_model(folder: Path, kind: str, seed: int = 1, *, fills_in: bool = False) -> Path:
    """Write a model of the architecture `kind`, or `moe`: llama's with experts, and return its path.

    `fills_in`: with the tokens for that.
    """
    path = folder / f"{kind}-{seed}.gguf"
    writer = gguf.GGUFWriter(path, "llama" if kind == "moe" else kind)
    _Tensors(writer, np.random.default_rng(seed)).write(kind)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(0 if kind == "mamba" else FEED_FORWARD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    if kind == "mamba":
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * WIDTH)
        writer.add_ssm_state_size(8)
        writer.add_ssm_time_step_rank(4)
    else:
        writer.add_head_count(HEADS)
        # In lfm2 a layer without KV heads is a convolution, which keeps a state.
        writer.add_head_count_kv([0, HEADS] * (LAYERS // 2) if kind == "lfm2" else HEADS)
        writer.add_key_length(_HEAD)
        writer.add_value_length(_HEAD)
        writer.add_rope_dimension_count(_HEAD)
    if kind == "moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
    if kind == "gemma3":
        writer.add_sliding_window(WINDOW)
        writer.add_sliding_window_pattern([True, False] * (LAYERS // 2))
    if kind == "lfm2":
        writer.add_shortconv_l_cache(3)
    add_vocabulary(writer, FILL_IN if fills_in else ())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, more: Sequence[str] = ()) -> None:
    """Add a vocabulary of bytes and words, with special tokens after the bytes."""
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    tokens += more
    types += [gguf.TokenType.CONTROL] * len(more)
    words = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *[f"\u2581w{i}" for i in range(words)]])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * words])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


class _Tensors:
    """Random weights, large enough that every token before makes a difference."""

    def __init__(self, writer: gguf.GGUFWriter, random: np.random.Generator) -> None:
        self._writer = writer
        self._random = random

    def write(self, kind: str) -> None:
        self._matrix("token_embd", WIDTH, VOCABULARY, scale=1.0)
        self._matrix("output", WIDTH, VOCABULARY)
        self._ones("token_embd_norm" if kind == "lfm2" else "output_norm", WIDTH)
        for layer in range(LAYERS):
            at = f"blk.{layer}"
            self._ones(f"{at}.attn_norm", WIDTH)
            if kind == "mamba":
                self._mamba(at)
                continue
            if kind == "lfm2" and layer % 2 == 0:
                self._convolution(at)
            else:
                self._attention(at, norms=kind not in ("llama", "moe"))
            if kind == "gemma3":
                self._ones(f"{at}.post_attention_norm", WIDTH)
                self._ones(f"{at}.post_ffw_norm", WIDTH)
            self._ones(f"{at}.ffn_norm", WIDTH)
            if kind == "moe":
                self._experts(at)
                continue
            self._matrix(f"{at}.ffn_gate", WIDTH, FEED_FORWARD)
            self._matrix(f"{at}.ffn_up", WIDTH, FEED_FORWARD)
            self._matrix(f"{at}.ffn_down", FEED_FORWARD, WIDTH)

    def _attention(self, at: str, *, norms: bool) -> None:
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            self._matrix(f"{at}.{name}", WIDTH, WIDTH)
        if norms:
            self._ones(f"{at}.attn_q_norm", _HEAD)
            self._ones(f"{at}.attn_k_norm", _HEAD)

    def _convolution(self, at: str) -> None:
        self._matrix(f"{at}.shortconv.conv", 3, WIDTH)
        self._matrix(f"{at}.shortconv.in_proj", WIDTH, 3 * WIDTH)
        self._matrix(f"{at}.shortconv.out_proj", WIDTH, WIDTH)

    def _experts(self, at: str) -> None:
        self._matrix(f"{at}.ffn_gate_inp", WIDTH, EXPERTS)
        for name, columns, rows in (
            ("gate", WIDTH, FEED_FORWARD),
            ("up", WIDTH, FEED_FORWARD),
            ("down", FEED_FORWARD, WIDTH),
        ):
            weights = self._random.normal(0.0, columns**-0.5, (EXPERTS, rows, columns))
            self._add(f"{at}.ffn_{name}_exps.weight", weights)

    def _mamba(self, at: str) -> None:
        inner, state, rank = 2 * WIDTH, 8, 4
        self._matrix(f"{at}.ssm_in", WIDTH, 2 * inner)
        self._matrix(f"{at}.ssm_conv1d", 4, inner)
        self._add(f"{at}.ssm_conv1d.bias", np.zeros(inner))
        self._matrix(f"{at}.ssm_x", inner, rank + 2 * state)
        self._matrix(f"{at}.ssm_dt", rank, inner)
        self._add(f"{at}.ssm_dt.bias", np.full(inner, -2.0))
        self._add(f"{at}.ssm_a", -np.tile(np.arange(1.0, state + 1), (inner, 1)) / 4)  # decays slowly
        self._add(f"{at}.ssm_d", np.ones(inner))
        self._matrix(f"{at}.ssm_out", inner, WIDTH)

    def _matrix(self, name: str, columns: int, rows: int, *, scale: float | None = None) -> None:
        deviation = columns**-0.5 if scale is None else scale
        self._add(f"{name}.weight", self._random.normal(0.0, deviation, (rows, columns)))

    def _ones(self, name: str, size: int) -> None:
        self._add(f"{name}.weight", np.ones(size))

    def _add(self, name: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> None:
        self._writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
