"""Sampling completions: one prefill a prompt, a cache, one jitted loop."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .model import Llama


class Samples(NamedTuple):
    """Completions, each `(prompts, samples, new)`.

    Attributes:
        tokens: ids; 0 after the end.
        mask: the tokens that were sampled, the one that ends included. Never made from
            the ids: any of them may stand inside a text.
        log_probs: of each token under the distribution that it was sampled from, which
            temperature, top-k and top-p have shaped; 0 where the mask is.
        values: of the states before each token; None without a value head.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    values: jax.Array | None


def generate(
    model: Llama,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    num_samples: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Samples:
    """Completions of prompts; jit it whole.

    Args:
        model: with its parameters.
        prompts: ids, padded on the left, (prompts, time).
        prompt_mask: False at the padding.
        key: consumed.
        num_samples: completions of each prompt.
        max_new_tokens: where they end if nothing ends them earlier.
        end_ids: tokens that end one.
        temperature: 0 takes the likeliest token each time.
        top_k: sample from the so many likeliest only.
        top_p: sample from the fewest likeliest that together have this probability.
    """
    sizes = (prompts.shape[0], num_samples)
    state, past = model.prefill(prompts, prompt_mask)
    state = jnp.broadcast_to(state, (*sizes, 1, state.shape[-1]))

    def sample(out: Samples, ended: jax.Array, state: jax.Array, i: jax.Array):
        logits = jnp.einsum(
            "bgd,vd->bgv",
            state[:, :, 0],
            model.unembed,
            preferred_element_type=jnp.float32,
        )
        shaped = restricted(logits, temperature, top_k, top_p)
        token = jax.random.categorical(jax.random.fold_in(key, i), shaped)
        log_prob = jnp.take_along_axis(
            shaped - jax.nn.logsumexp(shaped, -1, keepdims=True), token[..., None], -1
        )[..., 0]
        put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 2)
        values = out.values
        if values is not None:
            values = put(values, model.values(state)[..., 0])
        out = Samples(
            put(out.tokens, jnp.where(ended, 0, token).astype(jnp.int32)),
            put(out.mask, ~ended),
            put(out.log_probs, jnp.where(ended, 0, log_prob)),
            values,
        )
        ends = jnp.isin(token, jnp.asarray(np.array(end_ids, np.int32)))
        return out, ended | ends

    def going_on(carry: Any) -> jax.Array:
        i, _, ended, _ = carry
        return (i < max_new_tokens) & ~jnp.all(ended)

    def step(carry: Any) -> Any:
        i, out, ended, cache = carry
        last = jax.lax.dynamic_index_in_dim(out.tokens, i - 1, 2, keepdims=False)
        state, cache = model.step(last, i - 1, prompt_mask, past, cache)
        return i + 1, *sample(out, ended, state, i), cache

    blank = lambda dtype: jnp.zeros((*sizes, max_new_tokens), dtype)
    values = blank(jnp.float32) if model.training.value_head else None
    out = Samples(blank(jnp.int32), blank(bool), blank(jnp.float32), values)
    ended = jnp.zeros(sizes, bool)
    out, ended = sample(out, ended, state, jnp.int32(0))
    cache = model.empty_cache(*sizes, max(max_new_tokens - 1, 1))
    carry = jnp.int32(1), out, ended, cache
    return jax.lax.while_loop(going_on, step, carry)[1]


def restricted(
    logits: jax.Array, temperature: float, top_k: int | None, top_p: float | None
) -> jax.Array:
    """Logits of the distribution to sample from; -inf at what is left out."""
    if temperature == 0:
        top_k, temperature = 1, 1.0
    logits = logits / temperature
    if top_k is not None:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p is not None:
        falling = -jnp.sort(-logits, -1)
        probs = jax.nn.softmax(falling, -1)
        needed = jnp.cumsum(probs, -1) - probs < top_p  # the likeliest always is
        least = jnp.min(jnp.where(needed, falling, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def padded(
    texts: Sequence[Sequence[int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids padded on the left to one length, and the mask of what is not padding."""
    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        if not 0 < len(text) <= length:
            raise ValueError(
                f"a prompt of {len(text)} tokens; expected 1 to {length} of them."
            )
        ids[row, length - len(text) :] = text
        mask[row, length - len(text) :] = True
    return ids, mask
