"""BERT models of some hundred kilobytes with random weights: one for vectors, one for scores."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, FEED_FORWARD, LAYERS, CONTEXT = 32, 2, 64, 2, 256
WORDS = ("the", "cat", "sat", "dog", "ran", "sea", "is", "blue", "red", "a", "b", "c", ".", ",", "?")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_embedder(folder: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.MEAN, seed: int = 1) -> Path:
    """Write a model that pools as told and return its path; RANK makes it give scores."""
    path = folder / f"bert-{pooling.name.lower()}-{seed}.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    _add_vocabulary(writer)
    random = np.random.default_rng(seed)
    for name, shape in _shapes(is_ranking=pooling is gguf.PoolingType.RANK):
        is_norm = "norm.weight" in name
        data = np.ones(shape) if is_norm else random.normal(0, 0.3, shape)
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = [*_SPECIAL, *[f"\u2581{w}" for w in WORDS]]
    types = [gguf.TokenType.CONTROL] * len(_SPECIAL) + [gguf.TokenType.NORMAL] * len(WORDS)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_vocab_size(len(tokens))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)


def _shapes(*, is_ranking: bool) -> list[tuple[str, tuple[int, ...]]]:
    size = len(_SPECIAL) + len(WORDS)
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (size, WIDTH)),
        ("token_types.weight", (2, WIDTH)),
        ("position_embd.weight", (CONTEXT, WIDTH)),
        ("token_embd_norm.weight", (WIDTH,)),
        ("token_embd_norm.bias", (WIDTH,)),
    ]
    if is_ranking:
        shapes += [("cls.weight", (WIDTH, WIDTH)), ("cls.bias", (WIDTH,))]
        shapes += [("cls.output.weight", (1, WIDTH)), ("cls.output.bias", (1,))]
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes += [(f"{at}.{part}.weight", (WIDTH, WIDTH)), (f"{at}.{part}.bias", (WIDTH,))]
        for part in ("attn_output_norm", "layer_output_norm"):
            shapes += [(f"{at}.{part}.weight", (WIDTH,)), (f"{at}.{part}.bias", (WIDTH,))]
        shapes += [(f"{at}.ffn_up.weight", (FEED_FORWARD, WIDTH)), (f"{at}.ffn_up.bias", (FEED_FORWARD,))]
        shapes += [(f"{at}.ffn_down.weight", (WIDTH, FEED_FORWARD)), (f"{at}.ffn_down.bias", (WIDTH,))]
    return shapes
