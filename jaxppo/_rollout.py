"""The sampler against the trainer, in numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._kl import kl_k1, kl_k3
from ._masked import masked_mean, masked_sum
from ._types import Max, Mean, Metric, Min, Scalar


def correction_metrics(
    log_ratio: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    low: Scalar = 0.5,
    high: Scalar = 2.0,
) -> dict[str, Metric]:
    """How far the sampler is from the trainer: what to watch when correcting for it.

    All are of r = exp(log_ratio), log_ratio = log pi_old - log pi_rollout, as `Mean`s
    and extrema that merge: `weight`, its mean (1 in expectation), `weight_max`,
    `weight_min`, `weight_square` (its ESS, as a share, is weight^2 / weight_square),
    `above` and `below`, the shares of tokens outside [low, high]; `chi2_token`, the
    mean of r^2 - 1, and `chi2_sequence`, the same of the sequences' product ratios
    (bounded at exp(20)); `kl_k1` and `kl_k3`, estimates of KL(rollout || old);
    `log_perplexity_gap`, over sequences, of their mean log-ratio, with `_abs`, `_max`
    and `_min`.

    Args:
      log_ratio: from `log_ratio`, `(*batch, time)`.
      mask: the same shape, bool or integer, nonzero counts.
      low: lower bound of the ratio for `below`, at least 0.
      high: upper bound for `above`, positive.

    Returns:
      Metrics by name, without gradient.

    Raises:
      TypeError: log_ratio is not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or a bound is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> metrics = jaxppo.correction_metrics(jnp.log(jnp.array([[1.0, 3.0]])))
      >>> {name: float(metrics[name].value) for name in ("weight", "above")}
      {'weight': 2.0, 'above': 0.5}
    """
    fn = "correction_metrics"
    (x,) = _checks.arrays(fn, mask, log_ratio=log_ratio)
    _checks.has_time(fn, log_ratio=x)
    low = _checks.number(fn, "low", low, "[0, inf)", x.dtype)
    high = _checks.number(fn, "high", high, "(0, inf]", x.dtype)
    x = jax.lax.stop_gradient(x)
    keep = _checks.kept(fn, mask, log_ratio=x)
    rows = jnp.any(keep, -1)
    ratio = jnp.exp(x)
    product = jnp.exp(2 * jnp.clip(masked_sum(x, mask, axis=-1), -20, 20))
    gap = masked_mean(x, mask, axis=-1)

    def mean(x: Array, keep: Array) -> Mean:
        count = jnp.sum(keep, dtype=jnp.int32).astype(x.dtype)
        return Mean(jnp.sum(jnp.where(keep, x, 0)), count)

    def extrema(name: str, x: Array, keep: Array) -> dict[str, Metric]:
        largest = jnp.max(x, initial=-jnp.inf, where=keep)
        smallest = jnp.min(x, initial=jnp.inf, where=keep)
        return {f"{name}_max": Max(largest), f"{name}_min": Min(smallest)}

    tokens = {
        "weight": ratio,
        "weight_square": ratio**2,
        "above": (ratio > high).astype(x.dtype),
        "below": (ratio < low).astype(x.dtype),
        "chi2_token": ratio**2 - 1,
        "kl_k1": kl_k1(-x),
        "kl_k3": kl_k3(-x),
    }
    sequences = {
        "chi2_sequence": product - 1,
        "log_perplexity_gap": gap,
        "log_perplexity_gap_abs": jnp.abs(gap),
    }
    metrics: dict[str, Metric] = {k: mean(x, keep) for k, x in tokens.items()}
    metrics |= {k: mean(x, rows) for k, x in sequences.items()}
    metrics |= extrema("weight", ratio, keep)
    return metrics | extrema("log_perplexity_gap", gap, rows)
