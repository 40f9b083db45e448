"""The one actor-critic composition most people want."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

from . import _checks
from ._aggregate import token_mean
from ._clipping import clipped_surrogate
from ._kl import approx_kl_k1, approx_kl_k3, kl_k3
from ._metrics import (
    bound_fraction,
    clip_fraction,
    clip_fraction_lower,
    clip_fraction_upper,
    ratio_max,
    ratio_min,
)
from ._ratio import log_ratio
from ._types import Aggregator, Mask, Mean, Metric, PerSequence, PerToken, Scalar
from ._value import clipped_value, squared_value


def ppo_loss(
    log_probs: PerToken,
    old_log_probs: PerToken,
    advantages: PerSequence,
    mask: Mask | None = None,
    *,
    values: PerToken | None = None,
    old_values: PerToken | None = None,
    returns: PerToken | None = None,
    entropy: PerToken | None = None,
    ref_log_probs: PerToken | None = None,
    weights: PerSequence | None = None,
    clip_eps: Scalar = 0.2,
    clip_eps_high: Scalar | None = None,
    dual_clip: Scalar | None = None,
    value_coef: Scalar = 0.5,
    value_clip_eps: Scalar | None = None,
    entropy_coef: Scalar = 0.0,
    kl_coef: Scalar = 0.0,
    kl: Callable[[PerToken], PerToken] = kl_k3,
    aggregate: Aggregator = token_mean,
) -> tuple[Mean, dict[str, Metric]]:
    """PPO: policy, value, entropy and KL terms, added per token, aggregated once.

    L = w clipped_surrogate + value_coef (v - R)^2 / 2 - entropy_coef H + kl_coef KL,
    per token; a term exists if its array is given. The default, without KL, is
    Schulman et al., 2017 (arXiv:1707.06347), in the convention of CleanRL; with
    `ref_log_probs`, an `aggregate` and `(*batch, 1)` advantages it is GRPO and its
    kin. For another combination, add the terms yourself, as this function does.

    Args:
      log_probs: log pi of the sampled actions or tokens, nats, any shape
        `(*batch, time)`.
      old_log_probs: log pi_old, the trainer's own before this batch's first update.
      advantages: the same shape, or `(*batch, 1)`.
      mask: the same shape, bool or integer, nonzero counts; what lies under it,
        NaN included, changes neither value nor gradient.
      values: the critic's v; needs `returns`.
      old_values: v at rollout, for `value_clip_eps`.
      returns: the critic's targets R.
      entropy: H of the policy's distributions, nats.
      ref_log_probs: log pi_ref of a frozen reference.
      weights: importance weights of the policy term, the same shape or
        `(*batch, 1)`, such as `truncated_weights`; constant.
      clip_eps: see `clipped_surrogate`, as for the two that follow.
      clip_eps_high: bound above 1; None means `clip_eps`.
      dual_clip: c > 1, or None.
      value_coef: of the value term, at least 0.
      value_clip_eps: see `clipped_value`; None for no value clipping.
      entropy_coef: of the entropy bonus.
      kl_coef: of the KL term, at least 0.
      kl: per-token estimator, a function of log pi - log pi_ref: `kl_k3`,
        `unbiased_gradient_kl`, ...
      aggregate: `token_mean`, `sequence_mean`, `functools.partial(sequence_sum,
        scale=1 / max_length)`, or your own.

    Returns:
      `(loss, metrics)`, scalars as `Mean`, `Max` or `Min`; `finalize` divides.
      Metrics: `policy_loss`, and `value_loss` if there, through `aggregate`; per token
      `entropy` and `kl` if there, `approx_kl` (k3), `approx_kl_k1`, `clip_fraction`,
      `clip_fraction_lower`, `clip_fraction_upper`, `bound_fraction`, and the extrema
      `ratio_max`, `ratio_min`.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, a hyper-parameter is out of its range, or one is set
        whose array is missing.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> log_probs, old_log_probs = jnp.log(jnp.array([[0.5, 0.9]])), jnp.log(
      ...     jnp.array([[0.5, 0.6]])
      ... )
      >>> loss, metrics = jaxppo.ppo_loss(log_probs, old_log_probs, jnp.ones((1, 1)))
      >>> loss.value.round(4), metrics["clip_fraction"].value
      (Array(-1.1, dtype=float32), Array(0.5, dtype=float32))
    """
    fn = "ppo_loss"
    (log_probs,) = _checks.arrays(fn, mask, log_probs=log_probs)
    dtype = log_probs.dtype

    def given(name: str, x: Array, rows: bool = False) -> Array:
        per_sequence = (name,) if rows else ()
        both = {"log_probs": log_probs, name: x}
        return _checks.arrays(fn, mask, per_sequence, **both)[1].astype(dtype)

    def number(name: str, value: Scalar, interval: str) -> Array:
        return _checks.number(fn, name, value, interval, dtype)

    _checks.function(fn, "aggregate", aggregate, "jaxppo.token_mean")
    clip_eps = number("clip_eps", clip_eps, "(0, 1)")
    high = clip_eps
    if clip_eps_high is not None:
        high = number("clip_eps_high", clip_eps_high, "(0, inf)")
    if dual_clip is not None:
        dual_clip = number("dual_clip", dual_clip, "(1, inf]")

    advantages = given("advantages", advantages, rows=True)
    x = log_ratio(log_probs, given("old_log_probs", old_log_probs), mask)
    policy = clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=high, dual_clip=dual_clip
    )
    if weights is not None:
        policy = policy * jax.lax.stop_gradient(given("weights", weights, rows=True))
    losses, terms, loss = {"policy_loss": policy}, {}, policy

    if (values is None) != (returns is None):
        raise ValueError(f"{fn}: the value term needs both `values` and `returns`.")
    _needs(fn, "value_clip_eps", value_clip_eps, "old_values", old_values)
    _needs(fn, "value_clip_eps", value_clip_eps, "values", values)
    _needs(fn, "entropy_coef", entropy_coef, "entropy", entropy)
    _needs(fn, "kl_coef", kl_coef, "ref_log_probs", ref_log_probs)
    # Looked at even where they have no effect.
    value_coef = number("value_coef", value_coef, "[0, inf)")
    entropy_coef = number("entropy_coef", entropy_coef, "(-inf, inf)")
    kl_coef = number("kl_coef", kl_coef, "[0, inf)")
    if value_clip_eps is not None:
        value_clip_eps = number("value_clip_eps", value_clip_eps, "(0, inf]")
    if old_values is not None:
        old_values = given("old_values", old_values)
    _checks.function(fn, "kl", kl, "jaxppo.kl_k3")

    if values is not None and returns is not None:
        values, returns = given("values", values), given("returns", returns)
        if value_clip_eps is None or old_values is None:
            losses["value_loss"] = squared_value(values, returns, mask)
        else:
            losses["value_loss"] = clipped_value(
                values, old_values, returns, mask, clip_eps=value_clip_eps
            )
        loss = loss + value_coef * losses["value_loss"]
    if entropy is not None:
        terms["entropy"] = given("entropy", entropy)
        loss = loss - entropy_coef * terms["entropy"]
    if ref_log_probs is not None:
        ref = given("ref_log_probs", ref_log_probs)
        divergence = kl(log_ratio(log_probs, ref, mask))
        _, terms["kl"] = _checks.arrays(fn, log_probs=log_probs, kl=divergence)
        loss = loss + kl_coef * terms["kl"]

    out = aggregate(loss, mask)
    if not isinstance(out, Mean):
        raise TypeError(
            f"{fn}: `aggregate` returned a {type(out).__name__}; expected a "
            "`jaxppo.Mean`, as `token_mean` and its kin return."
        )
    metrics = {name: aggregate(term, mask) for name, term in losses.items()}
    metrics |= {name: token_mean(term, mask) for name, term in terms.items()}
    metrics |= _diagnostics(x, advantages, mask, clip_eps, high)
    return out, jax.lax.stop_gradient(metrics)


def _diagnostics(
    x: Array, advantages: Array, mask: Array | None, clip_eps: Array, high: Array
) -> dict[str, Metric]:
    """How far the policy has moved, and what the clip does about it."""
    per_token = {
        "approx_kl": approx_kl_k3(x),
        "approx_kl_k1": approx_kl_k1(x),
        "clip_fraction": clip_fraction(x, clip_eps=clip_eps, clip_eps_high=high),
        "clip_fraction_lower": clip_fraction_lower(x, advantages, clip_eps=clip_eps),
        "clip_fraction_upper": clip_fraction_upper(x, advantages, clip_eps=high),
        "bound_fraction": bound_fraction(x),
    }
    extrema = {"ratio_max": ratio_max(x, mask), "ratio_min": ratio_min(x, mask)}
    return {name: token_mean(x, mask) for name, x in per_token.items()} | extrema


def _needs(fn: str, name: str, value: Scalar | None, array: str, x: object) -> None:
    """A coefficient that is set, or might be, without the array it belongs to."""
    traced = isinstance(value, jax.Array)
    if x is None and value is not None and (traced or np.any(value != 0)):
        raise ValueError(
            f"{fn}: `{name}` = {value} has no effect without `{array}`; pass `{array}`."
        )
