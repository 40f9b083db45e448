"""Aggregators: how per-token losses become one number, left undivided as a `Mean`.

What a rejection leaves out stays in the denominator with
`aggregate(jnp.where(kept, loss, 0), mask)`, and leaves it with
`aggregate(loss, mask & kept)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._types import Aggregator, Mask, Mean, PerToken, Scalar


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


def prompt_mean(
    per_token: Float[Array, "*b n t"],
    mask: Bool[Array, "*b n t"] | Integer[Array, "*b n t"] | None = None,
    *,
    group_size: int,
) -> Mean:
    """Every prompt weighs the same: the mean over prompts of their token means.

    Between `token_mean`, where prompts with long answers weigh more, and
    `sequence_mean`, where each short answer weighs as much as a long one (ScaleRL,
    Khatri et al., 2025, arXiv:2510.13786). Groups are consecutive rows.

    Args:
      per_token: losses, `(*batch, n, time)`, n a multiple of group_size.
      mask: same shape, bool or integer, nonzero counts.
      group_size: samples per prompt; a microbatch must hold whole prompts.

    Returns:
      A `Mean` of scalars, count = prompts with at least one token.

    Raises:
      TypeError: per_token is not floating point, the mask is, or group_size is not an
        integer.
      ValueError: shapes differ, there are no rows, or group_size does not divide them.

    Example:
      >>> import functools, jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
      >>> per_token = jnp.array([[1.0, 1, 1], [5, 9, 9], [4, 4, 9], [9, 9, 9]])
      >>> float(jaxppo.prompt_mean(per_token, mask, group_size=2).value)
      3.0
    """
    fn = "prompt_mean"
    _checks.count(fn, "group_size", group_size)
    (x,) = _checks.arrays(fn, mask, per_token=per_token)
    if x.ndim < 2 or x.shape[-2] % group_size:
        raise ValueError(
            f"{fn}: `per_token` has shape {x.shape}; expected (*batch, n, time) with n "
            f"a multiple of `group_size` = {group_size}."
        )
    *batch, rows, time = x.shape
    shape = (*batch, rows // group_size, group_size * time)
    keep = _checks.valid(fn, mask, per_token=per_token)
    return sequence_mean(
        x.reshape(shape), None if keep is None else keep.reshape(shape)
    )


def all_rows(aggregate: Aggregator) -> Aggregator:
    """Makes an aggregator divide by what it would count if every token did.

    All sequences, that is, or all prompts, those without a token included; after
    `token_mean` all positions; after `token_sum` still nothing. TRL, Liger and SkyRL
    count so: an answer that was masked out, or a row that is there for its shape only,
    makes the loss of the others smaller. The sums are the same.

    Args:
      aggregate: `sequence_mean`, `functools.partial(sequence_sum, scale=...)`, ...

    Returns:
      An aggregator, whose count does not depend on the mask.

    Raises:
      TypeError: aggregate is not a function.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1], [0, 0, 0]])
      >>> jaxppo.all_rows(jaxppo.sequence_mean)(jnp.ones((2, 3)), mask).value
      Array(0.5, dtype=float32)
    """
    _checks.function("all_rows", "aggregate", aggregate, "jaxppo.sequence_mean")

    def over_all_rows(per_token: Array, mask: Array | None = None) -> Mean:
        """The same total, over the count of a full mask."""
        full = jnp.ones_like(per_token, bool)
        return Mean(aggregate(per_token, mask).total, aggregate(per_token, full).count)

    return over_all_rows


def _sequences(fn: str, per_token: Array, mask: Array | None) -> tuple[Array, Array]:
    (x,) = _checks.arrays(fn, mask, per_token=per_token)
    _checks.has_time(fn, per_token=per_token)
    keep = _checks.valid(fn, mask, per_token=per_token)
    if keep is None:
        return x, jnp.full(x.shape[:-1], x.shape[-1])
    return x, jnp.sum(keep, -1, dtype=jnp.int32)
