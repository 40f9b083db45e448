"""Estimators over groups: samples of one prompt, each other's baseline.

Groups are `group_size` consecutive samples each, or samples of equal `group_ids`, in
any order and number. A group of equal rewards gives exactly 0, whatever their size.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks, _segments
from ._types import Scalar
from ._units import power_of_two

Rewards = Float[Array, "*b n"]
SampleMask = Bool[Array, "*b n"] | Integer[Array, "*b n"]
GroupIds = Integer[Array, "*b n"] | Integer[Array, " n"]


def group_advantages(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: GroupIds | None = None,
    weights: Rewards | None = None,
    scale_by_std: bool = True,
    ddof: Scalar = 1,
    eps: Scalar = 1e-6,
    singleton: Scalar = 0.0,
) -> Rewards:
    """GRPO's advantage: (r - mean) / (std + eps), within the samples of one prompt.

    Shao et al., 2024 (arXiv:2402.03300); without the standard deviation, Dr. GRPO's
    (Liu et al., 2025, arXiv:2503.20783); with the lengths as `weights` of the mean,
    too, OPO's (Hao et al., 2025, arXiv:2505.23585). A group of equal rewards gives
    exactly 0.

    Args:
      rewards: one per sample, `(*batch, n)`.
      mask: the same shape, bool or integer; samples it leaves out take no part in
        their group's statistics and get 0.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.
      weights: of the samples in their group's mean, rewards' shape; None for equal.
      scale_by_std: divide by the standard deviation (GRPO) or not (Dr. GRPO).
      ddof: 1 for the unbiased standard deviation (verl, TRL, Tunix), 0 for the
        population's (open-instruct, MaxText).
      eps: added to the standard deviation: 1e-6 in verl and Tunix, 1e-4 in TRL.
      singleton: a group of one gets this times its reward: 0, or 1 as in verl.

    Returns:
      `(*batch, n)`, in float32 at least; `[:, None]` makes it one per sequence.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: group_size does not divide n, or both or neither of it and group_ids
        are given; shapes differ; ddof or eps is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards = jnp.array([1.0, 0.0, 5.0, 5.0])
      >>> jaxppo.group_advantages(rewards, group_size=2).round(3)
      Array([ 0.707, -0.707,  0.   ,  0.   ], dtype=float32)
    """
    fn = "group_advantages"
    g = _groups(fn, rewards, mask, group_size, group_ids, weights)
    ddof = _checks.number(fn, "ddof", ddof, "[0, inf)", g.centred.dtype)
    eps = _checks.number(fn, "eps", eps, "[0, inf)", g.centred.dtype)
    out = g.centred
    if scale_by_std:
        out = _divided(g, g.centred, ddof, eps)
    return _with_singletons(fn, g, out, singleton)


def leave_one_out_advantages(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: GroupIds | None = None,
    singleton: Scalar = 0.0,
) -> Rewards:
    """RLOO's advantage: r less the mean of the *other* samples of its prompt.

    r_i - sum over j != i of r_j / (n - 1) = n / (n - 1) (r_i - mean) (Kool et al.,
    2019; Ahmadian et al., 2024, arXiv:2402.14740). A group of equal rewards gives
    exactly 0.

    Args:
      rewards: one per sample, `(*batch, n)`.
      mask: the same shape, bool or integer; samples it leaves out take no part and
        get 0.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.
      singleton: a group of one, which has no others, gets this times its reward.

    Returns:
      `(*batch, n)`, in float32 at least.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: group_size does not divide n, or both or neither of it and group_ids
        are given; shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards = jnp.array([3.0, 0.0, 0.0])
      >>> jaxppo.leave_one_out_advantages(rewards, group_size=3)
      Array([ 3. , -1.5, -1.5], dtype=float32)
    """
    fn = "leave_one_out_advantages"
    g = _groups(fn, rewards, mask, group_size, group_ids)
    out = g.centred * (g.count / jnp.maximum(g.count - 1, 1))
    return _with_singletons(fn, g, out, singleton)


def leave_one_out_std(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: GroupIds | None = None,
    ddof: Scalar = 1,
) -> Rewards:
    """The standard deviation of the *other* samples of a prompt, for each sample.

    NeMo-RL divides its leave-one-out advantage by it where it is not 0. It is computed
    from differences, not as E[r^2] - E[r]^2, whose rounding makes advantages of
    thousands where the others are equal. Takes memory n x n.

    Args:
      rewards: one per sample, `(*batch, n)`.
      mask: the same shape, bool or integer; samples it leaves out take no part and
        get 0.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.
      ddof: 1 for the unbiased standard deviation, 0 for the population's.

    Returns:
      `(*batch, n)`, in float32 at least; exactly 0 where the others are equal, or not
      more than `ddof`.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: group_size does not divide n, or both or neither of it and group_ids
        are given; shapes differ; ddof is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.leave_one_out_std(jnp.array([9.0, 1.0, 1.0]), group_size=3).round(3)
      Array([0.   , 5.657, 5.657], dtype=float32)
    """
    fn = "leave_one_out_std"
    g = _groups(fn, rewards, mask, group_size, group_ids)
    ddof = _checks.number(fn, "ddof", ddof, "[0, inf)", g.centred.dtype)
    n = g.centred.shape[-1]
    ids = jnp.arange(n) // (group_size or 1)
    if group_ids is not None:
        ids = group_ids
    ids = jnp.broadcast_to(ids, g.keep.shape)
    peers = (ids[..., :, None] == ids[..., None, :]) & g.keep[..., None, :]
    peers = peers & ~jnp.broadcast_to(jnp.eye(n, dtype=bool), peers.shape)
    others = jnp.broadcast_to(g.centred[..., None, :], peers.shape)
    # Relative to one of the others: they are exactly 0 where they are equal.
    shift = jnp.max(others, -1, keepdims=True, initial=-jnp.inf, where=peers)
    others = jnp.where(peers, others - jnp.where(jnp.isfinite(shift), shift, 0), 0)
    count = jnp.sum(peers, -1).astype(others.dtype)
    mean = jnp.sum(others, -1) / jnp.maximum(count, 1)
    unit = power_of_two(g.largest)
    others = jnp.where(peers, others - mean[..., None], 0) / unit[..., None]
    freedom = count - ddof
    variance = jnp.sum(others**2, -1) / jnp.where(freedom > 0, freedom, 1)
    equal = (variance <= (_rounding(g) / unit) ** 2) | (freedom <= 0) | ~g.keep
    return jnp.where(equal, 0, unit * jnp.sqrt(jnp.where(equal, 1, variance)))


def pass_at_k_advantages(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: GroupIds | None = None,
    scale_by_std: bool = True,
    eps: Scalar = 1e-6,
) -> Rewards:
    """Pass@k's advantage: to the best of the group what it is better by; 0 to the rest.

    (r_best - r_second) / (std + eps) for the (first) best sample: an unbiased gradient
    of the expected best of the group (verl's `grpo_passk`). std is the group's, with
    ddof 1. A group of one has no second, and gets 0.

    Args:
      rewards: one per sample, `(*batch, n)`.
      mask: the same shape, bool or integer; samples it leaves out take no part and
        get 0.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.
      scale_by_std: divide by the standard deviation, or not.
      eps: added to the standard deviation.

    Returns:
      `(*batch, n)`, in float32 at least.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: group_size does not divide n, or both or neither of it and group_ids
        are given; shapes differ; eps is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards = jnp.array([3.0, 0.0, 1.0])
      >>> jaxppo.pass_at_k_advantages(rewards, group_size=3, scale_by_std=False)
      Array([2., 0., 0.], dtype=float32)
    """
    fn = "pass_at_k_advantages"
    g = _groups(fn, rewards, mask, group_size, group_ids)
    eps = _checks.number(fn, "eps", eps, "[0, inf)", g.centred.dtype)
    low = jnp.where(g.keep, g.centred, -jnp.inf)
    first = g.max(low)
    place = jnp.broadcast_to(jnp.arange(low.shape[-1]), low.shape)
    # The first of equals: the largest of the places, counted from the end.
    at_top = jnp.where(low == first, -place, -low.shape[-1])
    best = g.keep & (low == first) & (at_top == g.max(at_top))
    second = g.max(jnp.where(best, -jnp.inf, low))
    nan = jnp.isnan(first)
    lead = jnp.where(best & jnp.isfinite(second), first - second, 0)
    lead = jnp.where(nan & g.keep, jnp.nan, lead)
    return _divided(g, lead, 1, eps) if scale_by_std else lead


def varied_groups(
    rewards: Rewards,
    mask: SampleMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: GroupIds | None = None,
) -> Bool[Array, "*b n"]:
    """True for the samples of prompts whose rewards are not all equal.

    The others teach nothing under a group baseline: DAPO samples until a batch is full
    of varied groups (Yu et al., 2025, arXiv:2503.14476), others leave the rest out of
    the mask, or of the denominator.

    Args:
      rewards: one per sample, `(*batch, n)`.
      mask: the same shape, bool or integer; samples it leaves out are not looked at,
        and False.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.

    Returns:
      Booleans, `(*batch, n)`.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: group_size does not divide n, or both or neither of it and group_ids
        are given; shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.varied_groups(jnp.array([1.0, 0.0, 1.0, 1.0]), group_size=2)
      Array([ True,  True, False, False], dtype=bool)
    """
    g = _groups("varied_groups", rewards, mask, group_size, group_ids)
    spread = g.max(jnp.abs(g.centred))
    return g.keep & ~(spread <= _rounding(g))  # a NaN varies


class _Groups(NamedTuple):
    sum: _segments.Over
    max: _segments.Over
    rewards: Array  # 0 where they do not count
    centred: Array  # less their group's mean
    keep: Array
    count: Array
    largest: Array  # |reward| of the group


def _groups(
    fn: str,
    rewards: Array,
    mask: Array | None,
    group_size: int | None,
    group_ids: Array | None,
    weights: Array | None = None,
) -> _Groups:
    (x,) = _checks.arrays(fn, mask, rewards=rewards)
    total, top = _segments.groups(fn, group_size, group_ids, rewards=x)
    keep = _checks.kept(fn, mask, rewards=x)
    w = keep.astype(x.dtype)
    if weights is not None:
        _, weights = _checks.arrays(fn, mask, rewards=x, weights=weights)
        w = weights.astype(x.dtype)
    # Relative to one of the group's own rewards, equal rewards are exactly 0.
    shift = top(jnp.where(keep, x, -jnp.inf))
    centred = jnp.where(keep, x - jnp.where(jnp.isfinite(shift), shift, 0), 0)
    weight = total(w)
    mean = total(w * centred) / jnp.where(weight > 0, weight, 1)
    centred = jnp.where(keep, centred - mean, 0)
    count = total(keep.astype(jnp.int32)).astype(x.dtype)
    return _Groups(total, top, x, centred, keep, count, top(jnp.abs(x)))


def _rounding(g: _Groups) -> Array:
    """What rewards of this size may differ by in their last bits, and be equal."""
    return 8 * jnp.finfo(g.centred.dtype).eps * g.largest


def _divided(g: _Groups, x: Array, ddof: Scalar, eps: Array) -> Array:
    """x / (std + eps); 0 in a group whose rewards are equal.

    Dividing by rounding would blow it up to advantages of size 1.
    """
    unit, freedom = power_of_two(g.largest), g.count - ddof
    variance = g.sum((g.centred / unit) ** 2) / jnp.where(freedom > 0, freedom, 1)
    equal = (variance <= (_rounding(g) / unit) ** 2) | (freedom <= 0)
    std = jnp.sqrt(jnp.where(equal, 1, variance)) + eps / unit
    return jnp.where(equal, 0, x / unit / std)


def _with_singletons(fn: str, g: _Groups, x: Array, singleton: Scalar) -> Array:
    share = _checks.number(fn, "singleton", singleton, "[0, 1]", x.dtype)
    return jnp.where(g.keep & (g.count == 1), share * g.rewards, x)
