"""A tiny random model, so that all of it runs in seconds and without a download."""

import zlib

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from .model import Config
from .source import Source

CONFIG = Config(
    vocab_size=258,
    dim=32,
    hidden_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_len=512,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)


def tokenizer() -> Tokenizer:
    """A token a byte, and two that end a text."""
    words = ["<|endoftext|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(words[:2])
    return made


def source(config: Config = CONFIG) -> Source:
    """Random tensors, the same each time."""
    c = config
    heads, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    rows = {"q_proj": (heads, c.dim), "k_proj": (keys, c.dim), "v_proj": (keys, c.dim)}
    rows |= {"o_proj": (c.dim, heads), "down_proj": (c.dim, c.hidden_dim)}
    rows |= dict.fromkeys(("gate_proj", "up_proj"), (c.hidden_dim, c.dim))
    rows |= dict.fromkeys(("embed_tokens", "lm_head"), (c.vocab_size, c.dim))
    rows |= dict.fromkeys(("q_norm", "k_norm"), (c.head_dim,))

    def tensor(name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        stem, kind = name.split(".")[-2:]
        shape = rows.get(stem, (c.dim,))
        if kind == "bias":
            return rng.normal(size=shape[:1]).astype(np.float32) / 4
        if len(shape) == 1:
            return (1 + rng.normal(size=shape) / 8).astype(np.float32)
        scale = 0.3 if stem in ("embed_tokens", "lm_head") else shape[1] ** -0.5
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return Source("tiny", config, tensor, tokenizer(), (0, 1))
