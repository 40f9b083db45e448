"""Decoder-only transformers of the Llama family, in Flax NNX.

Tokens are `(prompts, samples, time)`: the samples of a prompt share what is computed
for it, its keys and values included. Nothing is repeated, so a group of 8 costs one
prompt and 8 completions, in training and in sampling.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from . import sharding

Part = tuple[jax.Array, jax.Array, jax.Array]  # keys, values, mask


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the slow rotations, for contexts longer than trained on."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a model, and the few choices that tell the family's members apart."""

    vocab_size: int
    dim: int
    hidden_dim: int  # of the MLP
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_len: int
    rope_theta: float
    norm_eps: float
    rope_scaling: RopeScaling | None = None
    tied: bool = True  # the unembedding is the embedding
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3


@dataclasses.dataclass(frozen=True)
class Training:
    """What of a model is trained, and how it is computed."""

    layers: int | None = None  # the last so many, with the final norm; None: everything
    lora_rank: int = 0  # low-rank updates of all projections instead, if positive
    value_head: bool = False
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    remat: bool = True  # compute a layer again for its gradient instead of saving it


class Block(nnx.Module):
    """Attention and MLP, each on normalised inputs and added to them."""

    def __init__(self, config: Config, training: Training, rngs: nnx.Rngs):
        c, d = config, config.dim
        self.config, self.dtype = c, training.dtype
        norm = partial(nnx.RMSNorm, epsilon=c.norm_eps, dtype=self.dtype, rngs=rngs)
        linear = partial(_linear, training, rngs)
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.q = linear(d, c.num_heads * c.head_dim, c.qkv_bias)
        self.k = linear(d, c.num_kv_heads * c.head_dim, c.qkv_bias)
        self.v = linear(d, c.num_kv_heads * c.head_dim, c.qkv_bias)
        self.o = linear(c.num_heads * c.head_dim, d)
        if c.qk_norm:
            self.q_norm, self.k_norm = norm(c.head_dim), norm(c.head_dim)
        self.gate, self.up = linear(d, c.hidden_dim), linear(d, c.hidden_dim)
        self.down = linear(c.hidden_dim, d)

    def __call__(
        self, x: jax.Array, angles: jax.Array, mask: jax.Array, *earlier: Part
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The layer's output, and its keys and values.

        Args:
            x: (prompts, samples, time, dim).
            angles: of the rotations, (prompts, samples or 1, time, head_dim / 2).
            mask: which of these tokens each attends to, (..., time, time).
            earlier: what else they attend to, with masks (..., time or 1, of it).
        """
        c, x = self.config, sharding.of_tokens(x)
        h = self.attention_norm(x)
        split = lambda y, n: y.reshape(*x.shape[:3], n, c.head_dim)
        q, k = split(self.q(h), c.num_heads), split(self.k(h), c.num_kv_heads)
        v = split(self.v(h), c.num_kv_heads)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotated(q, angles), rotated(k, angles)
        x = x + self.o(attention(q, *earlier, (k, v, mask)))
        h = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h)), (k, v)


def _linear(
    training: Training, rngs: nnx.Rngs, size: int, out: int, use_bias: bool = False
) -> nnx.Linear:
    kwargs = dict(use_bias=use_bias, dtype=training.dtype, rngs=rngs)
    if not training.lora_rank:
        return nnx.Linear(size, out, **kwargs)
    lora = dict(lora_rank=training.lora_rank, lora_dtype=training.dtype)
    return nnx.LoRALinear(size, out, **lora, **kwargs)


def rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """RoPE: each pair of a head's halves turned by its angle."""
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attention(q: jax.Array, *parts: Part) -> jax.Array:
    """Attention over parts, of which some are shared by a prompt's samples.

    Args:
        q: (prompts, samples, time, heads, head_dim).
        parts: keys and values, (prompts, samples or 1, length, kv_heads, head_dim),
            and a mask, (prompts, samples or 1, time or 1, length).

    Returns:
        (prompts, samples, time, heads * head_dim).
    """
    b, g, t, heads, d = q.shape
    q = q.reshape(b, g, t, parts[0][0].shape[3], -1, d) * jnp.asarray(d**-0.5, q.dtype)
    scores = []
    for k, _, mask in parts:
        letters, k = ("bskd", k[:, 0]) if k.shape[1] == 1 else ("bgskd", k)
        z = jnp.einsum(
            f"bgtkrd,{letters}->bgkrts", q, k, preferred_element_type=jnp.float32
        )
        # Added, not chosen: the gradient of a choice keeps zeros of the scores' size.
        scores.append(z + jnp.where(mask[:, :, None, None], 0.0, -1e30))
    weights = jax.nn.softmax(jnp.concatenate(scores, -1)).astype(q.dtype)
    out, start = jnp.zeros_like(q), 0
    for _, v, _ in parts:
        letters, v = ("bskd", v[:, 0]) if v.shape[1] == 1 else ("bgskd", v)
        w = weights[..., start : start + v.shape[-3]]
        out = out + jnp.einsum(f"bgkrts,{letters}->bgtkrd", w, v)
        start += v.shape[-3]
    return out.reshape(b, g, t, heads * d)


class Llama(nnx.Module):
    """Layers are stacked and run by `lax.scan`, so that all compile as one.

    A stack of layers that are not trained, if there are any, comes before the one of
    those that are: nothing is kept for the gradient of the first.
    """

    def __init__(self, config: Config, training: Training, rngs: nnx.Rngs):
        c, trained = config, training.layers
        self.config, self.training = config, training
        if trained is not None and not 1 <= trained <= c.num_layers:
            raise ValueError(
                f"{trained} layers to train, of a model with {c.num_layers}."
            )
        self.sizes = stack_sizes(config, training)

        @nnx.vmap(in_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, training, rngs)

        normal = nnx.initializers.normal(0.02)
        table = lambda: nnx.Param(normal(rngs.params(), (c.vocab_size, c.dim)))
        self.embed = table()
        self.stacks = nnx.List([stack(rngs.split(n)) for n in self.sizes])
        self.norm = nnx.RMSNorm(
            c.dim, epsilon=c.norm_eps, dtype=training.dtype, rngs=rngs
        )
        if not c.tied:
            self.head = table()
        if training.value_head:
            zeros = nnx.initializers.zeros_init()
            self.value = nnx.Linear(c.dim, 1, kernel_init=zeros, rngs=rngs)

    @property
    def unembed(self) -> jax.Array:
        """(vocab_size, dim), in the dtype of the computation."""
        name = "embed" if self.config.tied else "head"
        table, dtype = getattr(self, name)[...], self.training.dtype
        return sharding.gathered({name: table}, dtype)[name]

    def values(self, states: jax.Array) -> Any:
        """The critic's value of each state, float32; None without a value head."""
        if not self.training.value_head:
            return None
        return self.value(states.astype(jnp.float32))[..., 0]

    def states(
        self, prompts: jax.Array, prompt_mask: jax.Array, completions: jax.Array
    ) -> jax.Array:
        """What each token of the completions is predicted from.

        Args:
            prompts: ids, padded on the left, (prompts, time).
            prompt_mask: False at the padding.
            completions: ids, padded on the right, (prompts, samples, new).

        Returns:
            (prompts, samples, new, dim): at 0, the end of the prompt.
        """
        given = completions[..., :-1]  # nothing follows the last
        new = given.shape[-1]
        own = jnp.tril(jnp.ones((1, 1, new, new), bool))
        place = jnp.sum(prompt_mask, 1, dtype=jnp.int32)[:, None, None]
        angles = self._angles(place + jnp.arange(new, dtype=jnp.int32)[None, None])
        seen = prompt_mask[:, None, None]
        prompt, prompt_angles, causal = self._prompt(prompts, prompt_mask)

        def layer(block: Block, xs: Any) -> Any:
            x, y = xs
            x, past = block(x, prompt_angles, causal)
            y, _ = block(y, angles, own, (*past, seen))
            return (x, y), None

        (x, y), _ = self._layers(layer, (prompt, self._embedded(given)))
        last = jnp.broadcast_to(x[:, :, -1:], (*y.shape[:2], 1, y.shape[3]))
        return self.norm(jnp.concatenate([last, y], 2))

    def prefill(self, prompts: jax.Array, prompt_mask: jax.Array) -> tuple[Any, Any]:
        """The state after each prompt, (prompts, 1, 1, dim), and keys and values."""
        x, angles, causal = self._prompt(prompts, prompt_mask)
        x, past = self._layers(lambda block, x: block(x, angles, causal), x)
        return self.norm(x[:, :, -1:]), past

    def step(
        self, tokens: jax.Array, at: jax.Array, prompt_mask: jax.Array, past: Any, cache
    ) -> tuple[jax.Array, Any]:
        """The state after one more token of each completion, and the longer cache.

        Args:
            tokens: ids, (prompts, samples).
            at: how many the completions had before.
            prompt_mask: as in `prefill`.
            past: keys and values of the prompts, from there.
            cache: those of the completions, from `empty_cache` or the step before.
        """
        place = jnp.sum(prompt_mask, 1, dtype=jnp.int32)[:, None, None] + at
        angles, seen = self._angles(place), prompt_mask[:, None, None]
        one = jnp.ones((1, 1, 1, 1), bool)
        before = (jnp.arange(cache[0][0].shape[3]) < at)[None, None, None]

        def layer(block: Block, x: jax.Array, past, cache) -> Any:
            x, own = block(x, angles, one, (*past, seen), (*cache, before))
            return x, own

        x, own = self._layers(layer, self._embedded(tokens[..., None]), past, cache)
        put = lambda c, x: jax.lax.dynamic_update_slice_in_dim(c, x, at, 3)
        return self.norm(x), jax.tree.map(put, cache, own)

    def empty_cache(self, prompts: int, samples: int, length: int) -> Any:
        """Room for keys and values, a pair a stack."""
        c = self.config
        sizes = (prompts, samples, length, c.num_kv_heads, c.head_dim)
        zeros = lambda n: jnp.zeros((n, *sizes), self.training.dtype)
        return [(zeros(n), zeros(n)) for n in self.sizes]

    def _prompt(self, prompts: jax.Array, mask: jax.Array) -> Any:
        x = self._embedded(prompts[:, None])
        places = jnp.maximum(jnp.cumsum(mask, 1, dtype=jnp.int32) - 1, 0)[:, None]
        causal = jnp.tril(jnp.ones((mask.shape[1],) * 2, bool))[None, None]
        return x, self._angles(places), causal & mask[:, None, None]

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        return self.embed[...][tokens].astype(self.training.dtype)

    def _angles(self, places: jax.Array) -> jax.Array:
        c = self.config
        pair = jnp.arange(0, c.head_dim, 2, dtype=jnp.float32)
        speeds = c.rope_theta ** (-pair / c.head_dim)
        if (s := c.rope_scaling) is not None:
            turns = s.original_max_len * speeds / (2 * jnp.pi)
            span = s.high_freq_factor - s.low_freq_factor
            kept = jnp.clip((turns - s.low_freq_factor) / span, 0, 1)
            speeds = kept * speeds + (1 - kept) * speeds / s.factor
        return places[..., None].astype(jnp.float32) * speeds

    def _layers(self, layer: Callable, x: Any, *of_layers: Sequence[Any]) -> Any:
        """`layer(block, x, ...)` through all of them, and what each gave besides."""
        given = []
        for stack, *of_stack in zip(self.stacks, *of_layers, strict=True):
            graph, params = nnx.split(stack)
            body = partial(self._layer, layer, graph)
            if self.training.remat:
                body = jax.checkpoint(body, prevent_cse=False)  # a scan keeps it apart
            x, ys = jax.lax.scan(body, x, (params, *of_stack))
            given.append(ys)
        return x, given

    def _layer(self, layer: Callable, graph: Any, x: Any, now: Any) -> Any:
        params, *of_layer = now
        whole = sharding.gathered({"stacks": params}, self.training.dtype)
        return layer(nnx.merge(graph, whole["stacks"]), x, *of_layer)


def stack_sizes(config: Config, training: Training) -> tuple[int, ...]:
    """Layers of each stack: those that stay as they are, and those that are trained."""
    trained = config.num_layers if training.layers is None else training.layers
    return tuple(n for n in (config.num_layers - trained, trained) if n)


def is_trained(config: Config, training: Training) -> Callable[[tuple, Any], bool]:
    """A filter for `nnx.split`: the parameters that the optimiser moves."""
    last = len(stack_sizes(config, training)) - 1

    def trained(path: tuple, value: Any) -> bool:
        if path[0] == "value":
            return True
        if training.lora_rank and "lora" not in path:
            return False
        last_layers = path[0] == "norm" or path[:2] == ("stacks", last)
        return training.layers is None or last_layers

    return trained
