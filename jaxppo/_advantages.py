"""Estimators along time: advantages and returns of trajectories.

They are arithmetic on what they are given: nothing is detached here (the loss terms
do that). Time is the last axis; swap the axes of time-major arrays:
`x.swapaxes(0, 1)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._recurrence import recurrence, scan_backwards, times, zeros
from ._types import Advantages, Scalar

BT = Float[Array, "*b t"]
Steps = Float[Array, "*#b #t"] | Scalar
StepMask = Bool[Array, "*b t"] | Integer[Array, "*b t"]


def gae(
    rewards: BT,
    values: BT,
    discounts: Steps,
    *,
    lambda_: Steps = 0.95,
    bootstrap_value: Float[Array, "*b"] | None = None,
    next_values: BT | None = None,
    mask: StepMask | None = None,
) -> Advantages:
    """Generalised advantage estimates, backwards along the last axis.

    delta_t = r_t + discount_t v_{t+1} - v_t;
    A_t = delta_t + discount_t lambda_t A_{t+1};  returns = A + v
    (Schulman et al., 2015, arXiv:1506.02438).

    An episode's end needs no flag. Terminated: discount_t = 0. Cut short by a time
    limit: lambda_t = 0 there, and `next_values` holds the value of the state the step
    really led to, not of the one the environment was reset to. Masked steps are
    skipped: their neighbours are each other's successors (tool tokens inside a
    completion, say). The returns are TD(lambda)'s targets.

    Of holes in the mask there are two more readings in use: steps like any other (no
    `mask`: SkyRL, slime), and steps of reward and value 0 that discount as they pass
    (no `mask`, both arrays zeroed: OpenRLHF).

    Args:
      rewards: r, `(*batch, time)`.
      values: v of the state each step starts from, the same shape.
      discounts: gamma (1 - terminated) per step, the same shape (last axis may be 1),
        or a number in [0, 1].
      lambda_: lambda per step, likewise.
      bootstrap_value: value after the last step, `(*batch)`; None means 0, right
        where episodes end inside the array.
      next_values: value of the state each step leads to, `(*batch, time)`, instead of
        the values shifted by one and `bootstrap_value`.
      mask: `(*batch, time)`, bool or integer, nonzero counts.

    Returns:
      `Advantages(advantages, returns)`, each `(*batch, time)`, in float32 at least,
      0 at masked steps.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, a number is out of [0, 1], or both `bootstrap_value`
        and `next_values` are given.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> rewards, values = jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5])
      >>> jaxppo.gae(rewards, values, 0.5, lambda_=1.0).advantages
      Array([1. , 0.5], dtype=float32)
    """
    fn = "gae"
    rewards, values = _checks.arrays(fn, mask, rewards=rewards, values=values)
    _checks.has_time(fn, rewards=rewards)
    keep = _checks.valid(fn, mask, rewards=rewards)
    discounts = _steps(fn, "discounts", discounts, mask, rewards)
    lambda_ = _steps(fn, "lambda_", lambda_, mask, rewards)
    if keep is not None and next_values is None:
        last = _last(fn, bootstrap_value, values)
        steps = rewards, values, discounts, lambda_, keep
        by_platform = dict(cpu=_gae_in_one_scan, default=_gae_over_holes)
        advantages = jax.lax.platform_dependent(last, *steps, **by_platform)
        return Advantages(advantages, advantages + values)
    following = _following(fn, values, bootstrap_value, next_values, mask)
    deltas = rewards + times(discounts, following) - values
    advantages = _backwards(deltas, discounts * lambda_, keep)
    return Advantages(advantages, advantages + values)


def discounted_returns(
    rewards: BT,
    discounts: Steps,
    *,
    bootstrap_value: Float[Array, "*b"] | None = None,
    mask: StepMask | None = None,
) -> BT:
    """Discounted sum of the rewards to come: G_t = r_t + discount_t G_{t+1}.

    Args:
      rewards: r, `(*batch, time)`.
      discounts: gamma (1 - terminated) per step, the same shape (last axis may be 1),
        or a number in [0, 1].
      bootstrap_value: G after the last step, `(*batch)`; None means 0.
      mask: `(*batch, time)`, bool or integer; masked steps are skipped.

    Returns:
      `(*batch, time)`, in float32 at least, 0 at masked steps.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, or a number is out of [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.discounted_returns(jnp.array([1.0, 1.0, 1.0]), 0.5)
      Array([1.75, 1.5 , 1.  ], dtype=float32)
    """
    fn = "discounted_returns"
    (rewards,) = _checks.arrays(fn, mask, rewards=rewards)
    _checks.has_time(fn, rewards=rewards)
    keep = _checks.valid(fn, mask, rewards=rewards)
    discounts = _steps(fn, "discounts", discounts, mask, rewards)
    last = _last(fn, bootstrap_value, rewards)
    return _backwards(rewards, discounts, keep, last)


def vtrace(
    log_ratio: BT,
    rewards: BT,
    values: BT,
    discounts: Steps,
    *,
    lambda_: Steps = 1.0,
    rho_clip: Scalar = 1.0,
    c_clip: Scalar = 1.0,
    bootstrap_value: Float[Array, "*b"] | None = None,
    next_values: BT | None = None,
    mask: StepMask | None = None,
) -> Advantages:
    """V-trace targets from off-policy trajectories, and the advantages they imply.

    With rho_t = min(rho_clip, ratio_t) and c_t = lambda_t min(c_clip, ratio_t):
    delta_t = rho_t (r_t + discount_t v_{t+1} - v_t);
    vs_t - v_t = delta_t + discount_t c_t (vs_{t+1} - v_{t+1});
    A_t = rho_t (r_t + discount_t (v_{t+1} + lambda_t (vs_{t+1} - v_{t+1})) - v_t)
    (Espeholt et al., 2018, arXiv:1802.01561; the lambdas as in rlax, whose separate
    `clip_pg_rho_threshold` is rho_clip here). Ends of episodes, `next_values` and masks
    as in `gae`.

    Args:
      log_ratio: log pi - log mu of the current and the behaviour policy, from
        `log_ratio`, `(*batch, time)`.
      rewards: r, the same shape.
      values: v of the state each step starts from, the same shape.
      discounts: gamma (1 - terminated) per step, the same shape (last axis may be 1),
        or a number in [0, 1].
      lambda_: lambda per step, likewise.
      rho_clip: cap of the ratio in the temporal differences, positive.
      c_clip: cap of the ratio in the traces, positive.
      bootstrap_value: value after the last step, `(*batch)`; None means 0.
      next_values: value of the state each step leads to, `(*batch, time)`.
      mask: `(*batch, time)`, bool or integer, nonzero counts.

    Returns:
      `Advantages(advantages, returns)`: A and the targets vs, each `(*batch, time)`,
      in float32 at least, 0 at masked steps.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, a number is out of its range, or both
        `bootstrap_value` and `next_values` are given.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> on_policy, rewards, values = jnp.zeros(2), jnp.ones(2), jnp.full(2, 0.5)
      >>> jaxppo.vtrace(on_policy, rewards, values, 0.5).returns
      Array([1.5, 1. ], dtype=float32)
    """
    fn = "vtrace"
    rewards, log_ratio, values = _checks.arrays(
        fn, mask, rewards=rewards, log_ratio=log_ratio, values=values
    )
    _checks.has_time(fn, rewards=rewards)
    keep = _checks.valid(fn, mask, rewards=rewards)
    discounts = _steps(fn, "discounts", discounts, mask, rewards)
    lambda_ = _steps(fn, "lambda_", lambda_, mask, rewards)
    rho_clip = _checks.number(fn, "rho_clip", rho_clip, "(0, inf]", rewards.dtype)
    c_clip = _checks.number(fn, "c_clip", c_clip, "(0, inf]", rewards.dtype)
    ratio = jnp.exp(log_ratio)
    rho, c = jnp.minimum(ratio, rho_clip), lambda_ * jnp.minimum(ratio, c_clip)
    following = _following(fn, values, bootstrap_value, next_values, mask)
    errors = rewards + times(discounts, following) - values
    excess = _backwards(rho * errors, discounts * c, keep)  # vs - v
    later = _shift(excess, zeros(excess)[..., None], keep)
    advantages = rho * (errors + times(discounts, lambda_ * later))
    if keep is not None:
        advantages = jnp.where(keep, advantages, 0)
    return Advantages(advantages, excess + values)


def length_adaptive_lambda(
    mask: StepMask, *, alpha: Scalar = 0.05
) -> Float[Array, "*b 1"]:
    """VAPO's lambda of each sequence: 1 - 1 / (alpha length), for its policy's `gae`.

    A fixed lambda forgets the outcome of long answers (0.95^1000 = 5e-23); this one
    lets the coefficients of the deltas add up to alpha times the length (Yue et al.,
    2025, arXiv:2504.05118). The critic takes lambda = 1 there: call `gae` twice
    ("decoupled").

    Args:
      mask: `(*batch, time)`, bool or integer, nonzero counts.
      alpha: positive.

    Returns:
      `(*batch, 1)`, of JAX's default float, in [0, 1]: 0 for sequences shorter than
      1 / alpha.

    Raises:
      TypeError: the mask is not bool or integer.
      ValueError: it has no time axis, or alpha is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]])
      >>> jaxppo.length_adaptive_lambda(mask, alpha=0.5)
      Array([[0.5],
             [0. ]], dtype=float32)
    """
    fn = "length_adaptive_lambda"
    keep = _checks.valid(fn, mask, mask=mask)
    if keep is None:
        raise TypeError(f"{fn}: `mask` is None; pass the mask of the sequences.")
    _checks.has_time(fn, mask=keep)
    alpha = _checks.number(fn, "alpha", alpha, "(0, inf)", jnp.result_type(float))
    length = jnp.sum(keep, -1, keepdims=True, dtype=jnp.int32).astype(alpha.dtype)
    return jnp.maximum(1 - 1 / (alpha * jnp.maximum(length, 1)), 0)


def _following(
    fn: str,
    values: Array,
    bootstrap_value: Array | None,
    next_values: Array | None,
    mask: Array | None,
) -> Array:
    """The value each step leads to."""
    if next_values is None:
        keep = _checks.valid(fn, mask, values=values)
        return _shift(values, _last(fn, bootstrap_value, values)[..., None], keep)
    if bootstrap_value is not None:
        raise ValueError(
            f"{fn}: both `bootstrap_value` and `next_values` are given; pass "
            "`next_values` alone (its last step is the bootstrap value)."
        )
    _, next_values = _checks.arrays(fn, mask, values=values, next_values=next_values)
    return next_values.astype(values.dtype)


def _last(fn: str, bootstrap_value: Array | None, like: Array) -> Array:
    if bootstrap_value is None:
        return zeros(like)
    (bootstrap_value,) = _checks.arrays(fn, bootstrap_value=bootstrap_value)
    if bootstrap_value.shape != like.shape[:-1]:
        raise ValueError(
            f"{fn}: `bootstrap_value` has shape {bootstrap_value.shape}, but `rewards` "
            f"has shape {like.shape}; pass shape {like.shape[:-1]}, one value after "
            "the last step of each sequence."
        )
    return bootstrap_value.astype(like.dtype)


def _steps(fn: str, name: str, value: Steps, mask: Any, rewards: Array) -> Array:
    """An array per step; of a number, one step that stands for all of them."""
    if np.ndim(value):
        return _checks.per_step(fn, name, value, "[0, 1]", mask, rewards=rewards)
    number = _checks.number(fn, name, value, "[0, 1]", rewards.dtype)
    return number.reshape((1,) * rewards.ndim)


def _gae_over_holes(last, rewards, values, discounts, lambda_, keep) -> Array:
    following = _shift(values, last[..., None], keep)
    deltas = rewards + times(discounts, following) - values
    return _backwards(deltas, discounts * lambda_, keep)


def _gae_in_one_scan(last, rewards, values, discounts, lambda_, keep) -> Array:
    """The same, with the successor's value carried along: one scan, not two."""

    def step(carry, now):
        later, successor = carry
        reward, value, discount, lambda_, keep = now
        delta = reward + times(discount, successor) - value
        y = delta + times(discount * lambda_, later)
        carry = jnp.where(keep, y, later), jnp.where(keep, value, successor)
        return carry, jnp.where(keep, y, 0)

    xs = rewards, values, discounts, lambda_, keep
    return scan_backwards(step, (zeros(rewards), last), xs)


def _shift(x: Array, last: Array, keep: Array | None) -> Array:
    """Each step's successor: the next step that counts, `last` after the last one."""
    if keep is not None:  # of each step: itself if it counts, or else its successor
        x = recurrence(jnp.where(keep, x, 0), jnp.where(keep, 0.0, 1), last[..., 0])
    return jnp.concatenate([x[..., 1:], last], -1)


def _backwards(
    x: Array, decay: Array, keep: Array | None, last: Array | None = None
) -> Array:
    """y_t = x_t + decay_t y_{t+1}, over the steps that count; 0 at the others."""
    last = zeros(x) if last is None else last
    if keep is None:
        return recurrence(x, decay, last)
    decay = jnp.where(keep, decay, 1)
    return jnp.where(keep, recurrence(jnp.where(keep, x, 0), decay, last), 0)
