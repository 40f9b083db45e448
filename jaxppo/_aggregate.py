"""Aggregators: how per-token losses become one number, left undivided as a `Mean`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._types import Mask, Mean, PerToken, Scalar


def token_mean(per_token: PerToken, mask: Mask | None = None) -> Mean:
    """Every token that counts weighs the same: sum of m L / sum of m.

    PPO in control, and DAPO's normalisation of token batches (Yu et al., 2025,
    arXiv:2503.14476).

    Args:
      per_token: losses, any shape.
      mask: same shape, bool or integer, nonzero counts.

    Returns:
      A `Mean` of scalars, count = tokens.

    Raises:
      TypeError: per_token is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
      >>> per_token = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
      >>> float(jaxppo.token_mean(per_token, mask).value)
      2.0
    """
    (x,) = _checks.arrays("token_mean", mask, per_token=per_token)
    keep = _checks.valid("token_mean", mask, per_token=per_token)
    count = jnp.array(x.size) if keep is None else jnp.sum(keep, dtype=jnp.int32)
    return Mean(jnp.sum(x), count.astype(x.dtype))


def token_sum(per_token: PerToken, mask: Mask | None = None) -> Mean:
    """The sum over tokens, divided by nothing: sum of m L.

    Its `Mean` has count 0, so that parts of a batch add up to the whole batch's sum;
    a metric aggregated so adds up over the steps of an update, too.

    Args:
      per_token: losses, any shape.
      mask: same shape, bool or integer, nonzero counts.

    Returns:
      A `Mean` of scalars whose value is its total.

    Raises:
      TypeError: per_token is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
      >>> per_token = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
      >>> float(jaxppo.token_sum(per_token, mask).value)
      8.0
    """
    (x,) = _checks.arrays("token_sum", mask, per_token=per_token)
    return Mean(jnp.sum(x), jnp.zeros((), x.dtype))


def sequence_mean(
    per_token: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
) -> Mean:
    """Every sequence weighs the same: the mean over sequences of their token means.

    GRPO's normalisation (Shao et al., 2024, arXiv:2402.03300), and GSPO's.

    Args:
      per_token: losses, `(*batch, time)`.
      mask: same shape, bool or integer, nonzero counts.

    Returns:
      A `Mean` of scalars, count = sequences with at least one token.

    Raises:
      TypeError: per_token is not floating point, or the mask is.
      ValueError: shapes differ, or there is no time axis.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
      >>> per_token = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
      >>> float(jaxppo.sequence_mean(per_token, mask).value)
      3.0
    """
    x, lengths = _sequences("sequence_mean", per_token, mask)
    means = jnp.sum(x, -1) / jnp.maximum(lengths, 1).astype(x.dtype)
    return Mean(jnp.sum(means), jnp.sum(lengths > 0).astype(x.dtype))


def sequence_sum(
    per_token: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    scale: Scalar = 1.0,
) -> Mean:
    """The mean over sequences of `scale` times the sum of their tokens.

    With scale = 1 / max_length this is Dr. GRPO's normalisation, free of length bias
    (Liu et al., 2025, arXiv:2503.20783).

    Args:
      per_token: losses, `(*batch, time)`.
      mask: same shape, bool or integer, nonzero counts.
      scale: multiplies every sum.

    Returns:
      A `Mean` of scalars, count = sequences with at least one token.

    Raises:
      TypeError: per_token is not floating point, or the mask is.
      ValueError: shapes differ, there is no time axis, or scale is not finite.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
      >>> per_token = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
      >>> float(jaxppo.sequence_sum(per_token, mask, scale=1 / 2).value)
      2.0
    """
    x, lengths = _sequences("sequence_sum", per_token, mask)
    scale = _checks.number("sequence_sum", "scale", scale, "(-inf, inf)", x.dtype)
    return Mean(scale * jnp.sum(x), jnp.sum(lengths > 0).astype(x.dtype))


def _sequences(fn: str, per_token: Array, mask: Array | None) -> tuple[Array, Array]:
    (x,) = _checks.arrays(fn, mask, per_token=per_token)
    _checks.has_time(fn, per_token=per_token)
    keep = _checks.valid(fn, mask, per_token=per_token)
    if keep is None:
        return x, jnp.full(x.shape[:-1], x.shape[-1])
    return x, jnp.sum(keep, -1, dtype=jnp.int32)
