"""Log-probs of tokens from logits, for those who have them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from . import _checks
from ._types import RowMask, Rows, Scalar


def selective_log_softmax(
    logits: Float[Array, "*b v"],
    targets: Integer[Array, "*b"],
    mask: RowMask | None = None,
    *,
    temperature: Float[Array, "*#b"] | Scalar = 1.0,
) -> tuple[Rows, Rows]:
    """Log-prob of each target and entropy of each row, the logits saved but once.

    log softmax(logits / T)[target], and H = -sum of p log p. A logit of -inf has
    probability 0 and adds nothing. Computed in float32 whatever the logits are in;
    saved for the gradient are the logits themselves and two numbers a row, and the
    gradient is made in one pass, in the logits' dtype. An entropy that is not used
    costs nothing under `jit`. `token_log_probs` does without the logits, too.
    Differentiable once, backwards: a Hessian, or forward mode, takes `categorical`.

    Args:
      logits: unnormalised log-probs, `(*batch, vocab)`.
      targets: indices, integers, `(*batch)`. One outside the vocabulary (-100, say) is
        as good as masked.
      mask: `(*batch)`, bool or integer; what it leaves out gives 0 and no gradient.
      temperature: T, a number or `(*batch)`, positive; constant.

    Returns:
      `(log_probs, entropy)`, nats, each `(*batch)`, in float32 at least.

    Raises:
      TypeError: logits are not floating point, or targets not integers.
      ValueError: shapes do not fit, or temperature is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> logits = jnp.array([[0.0, 0.0, -jnp.inf]])
      >>> log_probs, entropy = jaxppo.selective_log_softmax(logits, jnp.array([1]))
      >>> log_probs.round(4), entropy.round(4)
      (Array([-0.6931], dtype=float32), Array([0.6931], dtype=float32))
    """
    fn = "selective_log_softmax"
    _checks.floating(fn, logits=logits)
    _checks.integers(fn, targets=targets)
    if logits.ndim < 1 or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"{fn}: `targets` has shape {targets.shape}, but `logits` has shape "
            f"{logits.shape}; pass shape {logits.shape[:-1]}, one index per row."
        )
    if not logits.shape[-1]:
        raise ValueError(f"{fn}: `logits` has shape {logits.shape}: no words.")
    like = jax.ShapeDtypeStruct(targets.shape, _checks.wide(logits))
    temperature = _checks.per_step(
        fn, "temperature", temperature, "(0, inf)", targets=like
    )
    keep = _checks.valid(fn, mask, targets=targets)
    last = min(logits.shape[-1] - 1, jnp.iinfo(targets.dtype).max)
    valid = (targets >= 0) & (targets <= last)
    targets = jnp.where(valid, targets, 0).astype(jnp.int32)
    valid = valid if keep is None else valid & keep
    inverse = jax.lax.stop_gradient(1 / jnp.where(valid, temperature, 1))
    log_probs, entropy, _ = _selective(logits, targets, valid, inverse)
    return jnp.where(valid, log_probs, 0), jnp.where(valid, entropy, 0)


@jax.custom_vjp
def _selective(logits, targets, valid, inverse):
    z = _scaled(logits, inverse)
    top = jnp.max(z, -1)
    x = z - jnp.where(jnp.isneginf(top), 0, top)[..., None]
    e = jnp.exp(x)
    total = jnp.sum(e, -1)
    moment = jnp.sum(jnp.where(e > 0, e * x, 0), -1)
    # Comparing instead of gathering: works on a sharded vocabulary.
    words = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    chosen = jnp.sum(jnp.where(words == targets[..., None], x, 0), -1)
    log_total = jnp.log(total)
    return chosen - log_total, log_total - moment / total, top + log_total


def _scaled(logits, inverse):
    return logits.astype(inverse.dtype) * inverse[..., None]


def _selective_fwd(logits, targets, valid, inverse):
    out = _selective(logits, targets, valid, inverse)
    return out, (logits, targets, valid, inverse, *out[1:])


def _selective_bwd(saved, cotangents):
    logits, targets, valid, inverse, entropy, lse = saved
    g_log_prob, g_entropy, g_lse = cotangents
    level = g_log_prob + g_entropy * entropy - g_lse
    u = _scaled(logits, inverse) - lse[..., None]
    u = jnp.maximum(u, -1e4)  # its exp is 0, and 0 times it is 0
    words = jax.lax.broadcasted_iota(jnp.int32, u.shape, u.ndim - 1)
    own = jnp.where(words == targets[..., None], g_log_prob[..., None], 0)
    dz = own - jnp.exp(u) * (level[..., None] + g_entropy[..., None] * u)
    dz = jnp.where(valid[..., None], dz * inverse[..., None], 0)
    return dz.astype(logits.dtype), None, None, None


_selective.defvjp(_selective_fwd, _selective_bwd)
