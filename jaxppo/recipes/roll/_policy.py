"""Policy losses: PPO's and those of `pg_variant`."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

Loss = tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]
row_mean = jaxppo.all_rows(jaxppo.sequence_mean)


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """PPO's clip, by sequence unless told otherwise.

    ROLL 8eb27cc2, rlvr/actor_worker.py `loss_func`. The dual clip is off by default; it
    has no number of its own, and is 1 + 2 clip_eps where it is on (1.4, against 3 in
    other systems). `weights` are from `is_weights`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    bounds = (clip_eps, clip_eps_high, dual_clip)
    return _clipped(x, advantages, mask, weights, bounds, aggregate)


def ppo_sequence(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """GSPO: `ppo` on the mean log-ratio of the sequence, with its own gradient.

    ROLL 8eb27cc2, rlvr/actor_worker.py with `importance_sampling="seq"`. The widths
    remain PPO's: GSPO's paper has 3e-4 and 4e-4. Its two KLs are those of tokens.
    """
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    bounds = (clip_eps, clip_eps_high, dual_clip)
    return _clipped(x, advantages, mask, weights, bounds, aggregate, drift=drift)


def ppo_token_mean(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
) -> Loss:
    """`ppo` as ROLL's "token-mean" has it: the sum over *all* places / tokens.

    ROLL 8eb27cc2, utils/functionals.py `agg_loss`. Fault: it does not look at the mask,
    so that what a filter rejects is still learned from, and padding counts wherever its
    advantage is not 0; what is NaN there is NaN in the loss. Use
    `ppo(..., aggregate=jaxppo.token_mean)` instead.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, max_abs=math.inf)
    bounds = (clip_eps, clip_eps_high, dual_clip)
    return _clipped(x, advantages, mask, None, bounds, unmasked_token_mean)


def vanilla(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """REINFORCE: -A log pi; the old log-probs are there for the metrics.

    ROLL 8eb27cc2, rlvr/actor_pg_worker.py `_compute_vanilla_pg_loss`: its default.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.policy_gradient(log_probs, advantages, mask)
    return _total(loss, x, weights, mask, {}, aggregate)


def tis(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    low: ScalarLike = 0.0,
    high: ScalarLike = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """Truncated importance sampling as a *loss*: -sg(clip(r, 0, 1)) A log pi.

    ROLL 8eb27cc2, rlvr/actor_pg_worker.py `_compute_tis_loss`: r is against pi_old, not
    the sampler.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    metrics = _outside("tis", x, mask, low, high, jaxppo.sequence_mean)
    return _total(loss, x, weights, mask, metrics, aggregate)


def topr(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    positive_coef: ScalarLike = 1.0,
    negative_coef: ScalarLike = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """Tapered off-policy REINFORCE, good or bad by the *score*, one per sequence.

    -A log pi where the score is positive, -sg(min(r, 1)) A log pi elsewhere. ROLL
    8eb27cc2, rlvr/actor_pg_worker.py `_compute_topr_loss`; `scores` are `(batch, 1)`.
    With a baseline the advantage of a positive score may be negative: that token has no
    taper. `jaxppo.topr` decides by the advantage instead. The paper's r is the whole
    sequence's.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    good = jnp.broadcast_to(scores > 0, x.shape).astype(x.dtype)
    plain = jaxppo.policy_gradient(log_probs, advantages, mask)
    rising = good * plain
    falling = (1 - good) * jaxppo.truncated_weights(x, cap=1.0) * plain
    loss = rising * positive_coef + falling * negative_coef
    positive, negative = aggregate(rising, mask), aggregate(falling, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "actor/topr_positive_loss": positive,
        "actor/topr_negative_loss": negative,
        "actor/topr_weighted_positive_loss": positive * positive_coef,
        "actor/topr_weighted_negative_loss": negative * negative_coef,
        "actor/topr_negative_total_clipfrac": jaxppo.token_mean(
            jnp.where(x > 0, 1 - good, 0), mask
        ),
    }
    return _total(loss, x, weights, mask, metrics, aggregate)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.1,
    clip_eps_high: ScalarLike = 0.1,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """CISPO, its weights held in [0.9, 1.1]: -sg(clip(r, 1 - eps, 1 + eps)) A log pi.

    ROLL 8eb27cc2, rlvr/actor_pg_worker.py `_compute_cispo_loss`. So narrow a band is
    almost REINFORCE: the papers' bounds are [0, 5]. Its mean clipped ratio is over all
    rows.
    """
    low, high = 1 - clip_eps, 1 + clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    metrics = _outside("cispo", x, mask, low, high, row_mean)
    return _total(loss, x, weights, mask, metrics, aggregate)


def cispo_unified(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.1,
    clip_eps_high: ScalarLike = 0.1,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """`cispo` without the tokens that PPO's clip would stop.

    ROLL 8eb27cc2, `_compute_cispo_loss` with `cispo_use_unified_mask` (the paper's
    equation 7): 0 where A > 0 and r > 1 + eps, or A < 0 and r < 1 - eps. What is left
    is PPO's gradient, of weights in the band.
    """
    low, high = 1 - clip_eps, 1 + clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    ratio = jnp.exp(x)
    risen = (advantages > 0) & (ratio > high)
    fallen = (advantages < 0) & (ratio < low)
    loss = jnp.where(risen | fallen, 0, loss)
    metrics = _outside("cispo", x, mask, low, high, row_mean) | {
        "actor/cispo_masked_positive_tokens": _share(risen, mask),
        "actor/cispo_masked_negative_tokens": _share(fallen, mask),
        "actor/cispo_kept_tokens": _share(~(risen | fallen), mask),
    }
    return _total(loss, x, weights, mask, metrics, aggregate)


def kimi15(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    tau: ScalarLike = 0.1,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """Kimi k1.5's: -A log pi + tau / 2 (log pi - log pi_old)^2, without a ratio.

    ROLL 8eb27cc2, rlvr/actor_pg_worker.py `_compute_kimi15_loss`; verl's `dro`. The
    paper's square is of the whole sequence's log-ratio; this is each token's.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    square = jaxppo.kl_k2(x) * tau
    loss = jaxppo.policy_gradient(log_probs, advantages, mask) + square
    metrics: dict[str, jaxppo.Metric] = {
        "actor/kimi15_kl_reg_magnitude": jaxppo.token_mean(square, mask),
        "actor/kimi15_log_ratio_mean": jaxppo.token_mean(x, mask),
        "actor/kimi15_log_ratio_abs_mean": jaxppo.token_mean(jnp.abs(x), mask),
    }
    return _total(loss, x, weights, mask, metrics, aggregate)


def unmasked_token_mean(
    per_token: jax.Array, mask: jax.Array | None = None
) -> jaxppo.Mean:
    """The sum over all places, padding included, / the number of tokens.

    ROLL 8eb27cc2, utils/functionals.py `agg_loss`, "token-mean". Fault: see
    `ppo_token_mean`. Use `jaxppo.token_mean` instead.
    """
    tokens = jaxppo.token_mean(per_token, mask).count
    return jaxppo.Mean(jaxppo.masked_sum(per_token), tokens)


def sequence_mean_token_sum_norm(
    per_token: jax.Array, mask: jax.Array | None = None
) -> jaxppo.Mean:
    """The sum over all tokens / the width of the array, not / the batch.

    ROLL 8eb27cc2, utils/functionals.py `agg_loss`, "seq-mean-token-sum-norm". Fault:
    there is no mean over sequences, and the width is that of the padding. Use
    `functools.partial(jaxppo.sequence_sum, scale=1 / max_length)` instead.
    """
    return jaxppo.token_sum(per_token, mask) * (1 / per_token.shape[-1])


def _clipped(
    x: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array | None,
    bounds: tuple[ScalarLike, ScalarLike | None, ScalarLike],
    aggregate: jaxppo.Aggregator,
    *,
    drift: jax.Array | None = None,
) -> Loss:
    """PPO's clip, how many ratios are out of its band, and of how many it binds."""
    eps, high, dual_clip = bounds
    high = eps if high is None else high
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=eps, clip_eps_high=high, dual_clip=dual_clip
    )
    binds = jaxppo.clip_fraction_lower(x, advantages, clip_eps=eps)
    binds = binds + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high)
    ratio = jnp.exp(x)
    below, above = ratio < 1 - eps, ratio > 1 + high
    metrics: dict[str, jaxppo.Metric] = {
        "actor/ppo_ratio_low_clipfrac": _share(below, mask),
        "actor/ppo_ratio_high_clipfrac": _share(above, mask),
        "actor/ppo_ratio_clipfrac": _share(below | above, mask),
        "actor/clipfrac": aggregate(binds, mask),
    }
    return _total(loss, x, weights, mask, metrics, aggregate, drift=drift)


def _total(
    loss: jax.Array,
    x: jax.Array,
    weights: jax.Array | None,
    mask: jax.Array,
    metrics: dict[str, jaxppo.Metric],
    aggregate: jaxppo.Aggregator,
    *,
    drift: jax.Array | None = None,
) -> Loss:
    """The weights, the mean and the metrics that every loss has."""
    if weights is not None:
        loss = loss * jax.lax.stop_gradient(weights)
    out = aggregate(loss, mask)
    drift = jnp.where(mask, x if drift is None else drift, 0)
    metrics = metrics | {
        "actor/pg_loss": out,
        "actor/ratio_mean": jaxppo.sequence_mean(jnp.exp(x), mask),
        "actor/ratio_max": jaxppo.ratio_max(x, mask),
        "actor/ratio_min": jaxppo.ratio_min(x, mask),
        "actor/approxkl": aggregate(jaxppo.kl_k2(drift), mask),
        "actor/policykl": aggregate(jaxppo.kl_k1(drift), mask),
    }
    return out, jax.lax.stop_gradient(metrics)


def _outside(
    name: str,
    x: jax.Array,
    mask: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
    mean: jaxppo.Aggregator,
) -> dict[str, jaxppo.Metric]:
    """How many ratios a band holds, and the mean of what comes out."""
    ratio = jnp.exp(x)
    return {
        f"actor/{name}_lower_clipfrac": _share(ratio < low, mask),
        f"actor/{name}_upper_clipfrac": _share(ratio > high, mask),
        f"actor/{name}_total_clipfrac": _share((ratio < low) | (ratio > high), mask),
        f"actor/{name}_clipped_ratio_mean": mean(jnp.clip(ratio, low, high), mask),
    }


def _share(which: jax.Array, mask: jax.Array) -> jaxppo.Mean:
    return jaxppo.token_mean(which.astype(jnp.float32), mask)
