"""Log-prob, entropy and logsumexp of tokens, from logits that come block by block."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks, _stream
from ._stream import Head
from ._types import Leaf

LOWEST = -1e30  # a running maximum to start from: finite, so that no inf - inf is taken
FAR = -1e4  # below a maximum: its exp is 0 in any dtype, and 0 times it is 0


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns, nats, each `(*batch)`, in float32 at least.

    Attributes:
      log_probs: of the targets.
      entropy: of the distribution over the vocabulary.
      logsumexp: of the logits (for a z-loss, or a check on their scale).

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> hidden, unembed = jnp.zeros((3, 2)), jnp.ones((4, 2))  # four equal words
      >>> out = jaxppo.token_log_probs(hidden, unembed, jnp.array([0, 1, 2]))
      >>> out.log_probs.round(3)  # -log 4
      Array([-1.386, -1.386, -1.386], dtype=float32)
    """

    log_probs: Leaf
    entropy: Leaf
    logsumexp: Leaf


class Sums(NamedTuple):
    """Of a token's logits z so far, relative to their maximum."""

    top: jax.Array
    total: jax.Array  # of e^(z - top)
    moment: jax.Array  # of e^(z - top) (z - top)
    target: jax.Array  # z of the target


def check_head(
    fn: str,
    hidden: Any,
    unembed: Any,
    targets: Any,
    bias: Any,
    vocab_last: bool,
    prefix: str = "",
) -> None:
    """Raises if the arrays of a head do not fit each other."""
    h, w, b = (prefix + name for name in ("hidden", "unembed", "bias"))
    _checks.floating(fn, **{h: hidden, w: unembed})
    form = "(d, vocab)" if vocab_last else "(vocab, d)"
    if hidden.ndim < 1 or unembed.ndim != 2 or not unembed.size:
        raise ValueError(
            f"{fn}: `{h}` has shape {hidden.shape} and `{w}` {unembed.shape}; expected "
            f"(*batch, d) and {form}."
        )
    d, vocab = hidden.shape[-1], unembed.shape[1 if vocab_last else 0]
    if unembed.shape != ((d, vocab) if vocab_last else (vocab, d)):
        turned = unembed.shape[1 if vocab_last else 0] == d
        fix = f"pass `vocab_last={not vocab_last}`" if turned else f"d is {d} here"
        raise ValueError(
            f"{fn}: `{w}` has shape {unembed.shape}, but `{h}` has shape "
            f"{hidden.shape}; expected {form}: {fix}."
        )
    if targets is not None and targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"{fn}: `targets` has shape {targets.shape}, but `{h}` has shape "
            f"{hidden.shape}; pass shape {hidden.shape[:-1]}, an index per token."
        )
    if bias is not None:
        _checks.floating(fn, **{b: bias})
        if bias.shape != (vocab,):
            raise ValueError(
                f"{fn}: `{b}` has shape {bias.shape}; pass shape {(vocab,)}, an entry "
                "per word."
            )


def constants(
    fn: str, temperature: Any, softcap: Any, **like: jax.ShapeDtypeStruct
) -> tuple[jax.Array, jax.Array | None]:
    """Temperature and softcap, checked, in the dtype of what they go with."""
    ((_, of),) = like.items()
    temperature = _checks.per_step(fn, "temperature", temperature, "(0, inf)", **like)
    if softcap is not None:
        softcap = _checks.number(fn, "softcap", softcap, "(0, inf)", of.dtype)
    return temperature, softcap


def make_head(
    hidden: Array,
    unembed: Array,
    bias: Array | None,
    softcap: Array | None,
    temperature: Array,
    keep: Array,
    vocab_last: bool,
) -> Head:
    """The head of tokens in a row, constants detached; 1 as temperature off-mask."""
    inverse = 1 / jnp.where(keep, temperature, 1)
    softcap, inverse = jax.lax.stop_gradient((softcap, inverse))
    return Head(
        hidden.reshape(-1, hidden.shape[-1]),
        unembed,
        bias,
        softcap,
        inverse.ravel(),
        keep.ravel(),
        vocab_last,
    )


def inside(
    targets: jax.Array, vocab: int, vocab_axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """Whether each target is a word, and the targets, 0 where not, as int32."""
    for name in vocab_axes:
        vocab *= jax.lax.axis_size(name)
    last = min(vocab - 1, jnp.iinfo(targets.dtype).max)  # int8 ends before 50,000
    found = (targets >= 0) & (targets <= last)
    return found, jnp.where(found, targets, 0).astype(jnp.int32)


def zero_sums(n: int, dtype: Any) -> Sums:
    """Of no words yet."""
    zero = jnp.zeros(n, dtype)
    return Sums(jnp.full(n, LOWEST, dtype), zero, zero, zero)


def absorb_into(targets: jax.Array, head: Head, vocab_axes: tuple[str, ...]) -> Any:
    """What adds a block of logits to the sums."""
    targets = local(targets, head.vocab_size, vocab_axes)

    def absorb(sums, zs, row, start):
        (z,) = zs
        top = jnp.maximum(sums.top, jnp.max(z, 1))
        x = z - top[:, None]
        x = x if head.bias is None else jnp.maximum(x, FAR)  # bias may be -inf
        e = jnp.exp(x)
        hit, chosen = column(z, _stream.rows(targets, row, len(z)) - start)
        total, moment = rescaled(sums, top)
        total, moment = total + jnp.sum(e, 1), moment + jnp.sum(e * x, 1)
        return Sums(top, total, moment, jnp.where(hit, chosen, sums.target))

    return absorb


def slope_of(
    out: TokenLogProbs,
    grads: TokenLogProbs,
    targets: jax.Array,
    head: Head,
    vocab_axes: tuple[str, ...],
) -> Any:
    """The gradient to a block of logits, from those to what is returned.

    With u = z - logsumexp: d log_prob = 1[target] - p; d entropy = -p (u + entropy);
    d logsumexp = p.
    """
    targets = local(targets, head.vocab_size, vocab_axes)
    level = grads.log_probs + grads.entropy * out.entropy - grads.logsumexp

    def slope(zs, row, start):
        (z,) = zs
        here = lambda x: _stream.rows(x, row, len(z))[:, None]
        u = z - here(out.logsumexp)
        u = u if head.bias is None else jnp.maximum(u, FAR)
        words = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        own = jnp.where(words == here(targets) - start, here(grads.log_probs), 0)
        return own - jnp.exp(u) * (here(level) + here(grads.entropy) * u)

    return slope


def column(z: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each row's target is in this block, and its logit."""
    hit = (targets >= 0) & (targets < z.shape[1])
    place = jnp.clip(targets, 0, z.shape[1] - 1)[:, None]
    return hit, jnp.take_along_axis(z, place, 1, mode="promise_in_bounds")[:, 0]


def rescaled(sums: Sums, top: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Total and moment, relative to another maximum."""
    shift = jnp.maximum(sums.top - top, FAR)
    scale = jnp.exp(shift)
    return sums.total * scale, (sums.moment + sums.total * shift) * scale


def merged(sums: Sums, vocab_axes: tuple[str, ...]) -> Sums:
    """Of all shards of the vocabulary."""
    if not vocab_axes:
        return sums
    top = jax.lax.pmax(sums.top, vocab_axes)
    parts = (*rescaled(sums, top), sums.target)
    return Sums(top, *jax.lax.psum(parts, vocab_axes))


def from_sums(sums: Sums) -> TokenLogProbs:
    """What they come to."""
    total = jnp.where(sums.total == 0, 1, sums.total)  # of rows that were left out
    log_total = jnp.log(total)
    return TokenLogProbs(
        sums.target - sums.top - log_total,
        log_total - sums.moment / total,
        sums.top + log_total,
    )


def local(targets: jax.Array, vocab: int, vocab_axes: tuple[str, ...]) -> jax.Array:
    """Targets counted from this shard's first word."""
    if not vocab_axes:
        return targets
    return targets - jax.lax.axis_index(vocab_axes) * vocab
