"""Estimators over groups: samples of one prompt, each other's baseline."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._types import Scalar

Rewards = Float[Array, "*b n"]
SampleMask = Bool[Array, "*b n"] | Integer[Array, "*b n"]


def group_advantages(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int,
    scale_by_std: bool = True,
    ddof: Scalar = 1,
    eps: Scalar = 1e-6,
) -> Rewards:
    """GRPO's advantage: (r - mean) / (std + eps), within the samples of one prompt.

    Shao et al., 2024 (arXiv:2402.03300); without the standard deviation, Dr. GRPO's
    (Liu et al., 2025, arXiv:2503.20783). Groups are consecutive. A group of equal
    rewards gives exactly 0, whatever their size; so does a group of one.

    Args:
      rewards: one per sample, `(*batch, n)`, n a multiple of group_size.
      mask: the same shape, bool or integer; samples it leaves out take no part in
        their group's statistics and get 0.
      group_size: samples per prompt.
      scale_by_std: divide by the standard deviation (GRPO) or not (Dr. GRPO).
      ddof: 1 for the unbiased standard deviation (verl, TRL, Tunix), 0 for the
        population's (open-instruct, MaxText).
      eps: added to the standard deviation: 1e-6 in verl and Tunix, 1e-4 in TRL.

    Returns:
      `(*batch, n)`, in float32 at least; `[:, None]` makes it one per sequence.

    Raises:
      TypeError: rewards are not floating point, the mask is, or group_size is not an
        integer.
      ValueError: group_size does not divide n; shapes differ; ddof or eps is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards = jnp.array([1.0, 0.0, 5.0, 5.0])
      >>> jaxppo.group_advantages(rewards, group_size=2).round(3)
      Array([ 0.707, -0.707,  0.   ,  0.   ], dtype=float32)
    """
    fn = "group_advantages"
    centred, keep, largest = _centred(fn, rewards, mask, group_size)
    ddof = _checks.number(fn, "ddof", ddof, "[0, inf)", centred.dtype)
    eps = _checks.number(fn, "eps", eps, "[0, inf)", centred.dtype)
    if not scale_by_std:
        return centred.reshape(rewards.shape)
    count = jnp.sum(keep, -1, keepdims=True).astype(centred.dtype)
    freedom = count - ddof
    variance = jnp.sum(centred**2, -1, keepdims=True) / jnp.where(
        freedom > 0, freedom, 1
    )
    # Rewards that differ in their last bits only are equal; dividing by their standard
    # deviation would blow rounding up to advantages of size 1.
    rounding = 8 * jnp.finfo(centred.dtype).eps * largest
    equal = (variance <= rounding**2) | (freedom <= 0)
    std = jnp.sqrt(jnp.where(equal, 1, variance))
    return jnp.where(equal, 0, centred / (std + eps)).reshape(rewards.shape)


def leave_one_out_advantages(
    rewards: Rewards, mask: SampleMask | None = None, *, group_size: int
) -> Rewards:
    """RLOO's advantage: r less the mean of the *other* samples of its prompt.

    r_i - sum over j != i of r_j / (n - 1) = n / (n - 1) (r_i - mean) (Kool et al.,
    2019; Ahmadian et al., 2024, arXiv:2402.14740). Groups are consecutive. A group of
    equal rewards gives exactly 0, and so does a group of one, which has no others.

    Args:
      rewards: one per sample, `(*batch, n)`, n a multiple of group_size.
      mask: the same shape, bool or integer; samples it leaves out take no part and
        get 0.
      group_size: samples per prompt.

    Returns:
      `(*batch, n)`, in float32 at least.

    Raises:
      TypeError: rewards are not floating point, the mask is, or group_size is not an
        integer.
      ValueError: group_size does not divide n, or shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards = jnp.array([3.0, 0.0, 0.0])
      >>> jaxppo.leave_one_out_advantages(rewards, group_size=3)
      Array([ 3. , -1.5, -1.5], dtype=float32)
    """
    centred, keep, _ = _centred("leave_one_out_advantages", rewards, mask, group_size)
    count = jnp.sum(keep, -1, keepdims=True).astype(centred.dtype)
    return (centred * (count / jnp.maximum(count - 1, 1))).reshape(rewards.shape)


def _centred(
    fn: str, rewards: Array, mask: Array | None, group_size: int
) -> tuple[Array, Array, Array]:
    """Rewards less their group's mean, what counts, the group's largest |reward|."""
    _checks.count(fn, "group_size", group_size)
    (rewards,) = _checks.arrays(fn, mask, rewards=rewards)
    _checks.has_time(fn, rewards=rewards)
    if rewards.shape[-1] % group_size:
        raise ValueError(
            f"{fn}: `group_size` = {group_size} does not divide the "
            f"{rewards.shape[-1]} samples of `rewards`, of shape {rewards.shape}."
        )
    keep = _checks.valid(fn, mask, rewards=rewards)
    keep = jnp.ones(rewards.shape, bool) if keep is None else keep
    shape = (*rewards.shape[:-1], rewards.shape[-1] // group_size, group_size)
    x, keep = rewards.reshape(shape), keep.reshape(shape)
    largest = jnp.max(jnp.abs(x), -1, keepdims=True)
    # Relative to one of the group's own rewards, equal rewards are exactly 0.
    shift = jnp.max(x, -1, keepdims=True, initial=-jnp.inf, where=keep)
    x = jnp.where(keep, x - jnp.where(jnp.isfinite(shift), shift, 0), 0)
    count = jnp.maximum(jnp.sum(keep, -1, keepdims=True), 1).astype(x.dtype)
    mean = jnp.sum(x, -1, keepdims=True) / count
    return jnp.where(keep, x - mean, 0), keep, largest
