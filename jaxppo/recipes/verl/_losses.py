"""Policy losses."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

Metrics = dict[str, jaxppo.Metric]
Loss = tuple[jaxppo.Mean, Metrics]


def vanilla(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = 3.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """PPO's clip, with a dual clip that is always on.

    verl 0.9.1, `compute_policy_loss_vanilla`: `clip_ratio_c` = 3 is why it differs
    from "PPO" elsewhere wherever a ratio passes 3 on a negative advantage. In bypass
    mode (`ppo_clip`) pass the rollout's log-probs as the old ones, without weights.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    eps, high = clip_eps, clip_eps if clip_eps_high is None else clip_eps_high
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=eps, clip_eps_high=high, dual_clip=dual_clip
    )
    clipped, beyond = _clipped(x, advantages, eps, high), jnp.exp(x) > dual_clip
    lower = beyond & (advantages < 0)
    return aggregate(loss * weights, mask), _metrics(x, mask, clipped, lower)


def dppo_tv(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    low: ScalarLike = 0.2,
    high: ScalarLike | None = None,
    cap: ScalarLike = 3.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """DPPO: a weighted log-prob, masked where |pi - pi_old| has grown too far.

    verl 0.9.1, `compute_policy_loss_dppo_tv`: -sg(min(r, cap)) A log pi. Fault: the
    function's own cap is 20, but the config always supplies the dual clip's 3, which
    scales down the gradient of risen tokens. `cap=20` is what was meant.
    """
    far = jaxppo.binary_tv(log_probs, old_log_probs, mask)
    bounds = (low, high, cap)
    return _dppo(
        log_probs, old_log_probs, advantages, mask, far, weights, bounds, aggregate
    )


def dppo_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    low: ScalarLike = 0.2,
    high: ScalarLike | None = None,
    cap: ScalarLike = 3.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """DPPO with the binary KL divergence for the distance.

    verl 0.9.1, `compute_policy_loss_dppo_kl`. Fault: the cap, as in `dppo_tv`.
    """
    far = jaxppo.binary_kl(log_probs, old_log_probs, mask)
    bounds = (low, high, cap)
    return _dppo(
        log_probs, old_log_probs, advantages, mask, far, weights, bounds, aggregate
    )


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> Loss:
    """GSPO in the token form: the sequence's ratio, each token's own gradient.

    verl 0.9.1, `compute_policy_loss_gspo`. The log-ratio is bounded above only, by 10.
    Fault: the widths default to PPO's 0.2; the paper's are 3e-4 and 4e-4.
    """
    plain = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    s = jaxppo.sequence_token_log_ratio(
        log_probs, old_log_probs, mask, max_abs=math.inf
    )
    s = jnp.where(s > 10, 10, s)
    eps, high = clip_eps, clip_eps if clip_eps_high is None else clip_eps_high
    loss = jaxppo.clipped_surrogate(s, advantages, clip_eps=eps, clip_eps_high=high)
    metrics = _metrics(plain, mask, _clipped(s, advantages, eps, high))
    return aggregate(loss * weights, mask), metrics


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> Loss:
    """SAPO's soft gate, always the mean of sequences' means.

    verl 0.9.1, `compute_policy_loss_sapo`: the aggregation mode it is given is not
    used. Its clip fractions are 0.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.soft_gated_surrogate(
        x,
        advantages,
        temperature=temperature,
        temperature_negative=temperature_negative,
    )
    return jaxppo.sequence_mean(loss * weights, mask), _metrics(x, mask)


def gpg(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """GPG: -A log pi, on policy.

    verl 0.9.1, `compute_policy_loss_gpg`; it reports nothing.
    """
    loss = jaxppo.policy_gradient(log_probs, advantages, mask)
    return aggregate(loss * weights, mask), {}


def reinforce(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_sum,
) -> Loss:
    """-w A log pi, with constant weights: bypass mode's policy gradient.

    verl 0.9.1, `compute_policy_loss_reinforce`. `token_weights` of the *current*
    log-probs against the rollout's are the weights in bypass mode. The KL it reports
    is from the rollout.
    """
    loss = jaxppo.policy_gradient(log_probs, advantages, mask) * weights
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return aggregate(loss, mask), {"actor/ppo_kl": _mean(jaxppo.approx_kl_k1(x), mask)}


def clip_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    key: jax.Array,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    fraction: ScalarLike = 2e-4,
    low: ScalarLike = 1.0,
    high: ScalarLike = 5.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """PPO's clip, and random tokens of large covariance dropped.

    verl 0.9.1, `compute_policy_loss_clip_cov`, without a bound on the log-ratio.
    Fault: it chooses within each microbatch. This one chooses within what it is given:
    give it the whole batch, or choose first (`jaxppo.clip_cov_mask`).
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    eps, above = clip_eps, clip_eps if clip_eps_high is None else clip_eps_high
    clipped = _clipped(x, advantages, eps, above)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    covariance = jnp.where(clipped, -jnp.inf, covariance)
    drop = jaxppo.clip_cov_mask(
        key, covariance, mask, fraction=fraction, low=low, high=high
    )
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=eps, clip_eps_high=above)
    loss = jnp.where(drop, 0, loss * weights)
    metrics = _metrics(x, mask, drop)
    del metrics["actor/pg_clipfrac_lower"]
    return aggregate(loss, mask), metrics


def kl_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    fraction: ScalarLike = 2e-4,
    kl_coef: ScalarLike = 0.1,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """-r A without a clip, and kl_coef |log r| for the tokens of largest covariance.

    verl 0.9.1, `compute_policy_loss_kl_cov`: the coefficient is 0.1 in its config (1
    in its docstring). What it calls `ppo_kl` is the mean of |log r|. Fault: it chooses
    within each microbatch; see `clip_cov`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    held = jaxppo.kl_cov_mask(covariance, mask, fraction=fraction)
    penalty = jnp.where(held, kl_coef * jaxppo.kl_abs(x), 0)
    loss = (jaxppo.unclipped_surrogate(x, advantages) + penalty) * weights
    return aggregate(loss, mask), {"actor/ppo_kl": _mean(jaxppo.kl_abs(x), mask)}


def geo_mean(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
) -> Loss:
    """GMPO: the geometric mean of each sequence's clipped ratios.

    verl 0.9.1, `compute_policy_loss_geo_mean`, without a bound on the log-ratio.
    Fault: it divides by all rows, empty ones too, whatever aggregation it is given;
    `jaxppo.recipes.gmpo` counts rows with a token.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    eps, high = clip_eps, clip_eps if clip_eps_high is None else clip_eps_high
    loss = jaxppo.geometric_mean_surrogate(
        x, advantages, mask, clip_eps=eps, clip_eps_high=high
    )
    if weights is not None:
        logs = jnp.log(jnp.where(mask, weights, 1) + 1e-10)
        loss = loss * jnp.exp(jaxppo.masked_mean(logs, mask, axis=-1, keepdims=True))
    out = (x < jnp.negative(eps)) | (x > high)
    metrics = _metrics(x, mask, out & (advantages > 0), out & (advantages < 0))
    return jaxppo.all_rows(jaxppo.sequence_mean)(loss, mask), metrics


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """CISPO with the ratio held in [1 - eps, 1 + high].

    verl 0.9.1, `compute_policy_loss_cispo`: its defaults are PPO's widths, where the
    paper has no lower bound and a large upper one (`jaxppo.cispo`'s defaults). The clip
    fraction does not look at the advantage.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    eps, high = clip_eps, clip_eps if clip_eps_high is None else clip_eps_high
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=1 - eps, high=1 + high)
    clipped = jaxppo.clip_fraction(x, clip_eps=eps, clip_eps_high=high) > 0
    return aggregate(loss * weights, mask), _metrics(x, mask, clipped)


def dro(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    beta: ScalarLike,
    weights: jax.Array | float = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> Loss:
    """Direct reward optimisation: -A log pi + beta (log r)^2 / 2.

    verl 0.9.1, `compute_policy_loss_dro`; `dro_beta` has no default.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.policy_gradient(log_probs, advantages, mask) + beta * jaxppo.kl_k2(x)
    metrics: Metrics = {"actor/ppo_kl": _mean(jaxppo.approx_kl_k1(x), mask)}
    return aggregate(loss * weights, mask), metrics


def _dppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    divergence: jax.Array,
    weights: jax.Array | float,
    bounds: tuple[ScalarLike, ScalarLike | None, ScalarLike],
    aggregate: jaxppo.Aggregator,
) -> Loss:
    low, high, cap = bounds
    plain = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    keep = jaxppo.trust_region_mask(plain, advantages, divergence, low=low, high=high)
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, high=cap)
    loss = jnp.where(keep, loss * weights, 0)
    return aggregate(loss, mask), _metrics(x, mask, ~keep, keep & (jnp.exp(x) > cap))


def _clipped(
    x: jax.Array, advantages: jax.Array, eps: ScalarLike, high: ScalarLike
) -> jax.Array:
    """Where the clipped loss is the larger one."""
    lower = jaxppo.clip_fraction_lower(x, advantages, clip_eps=eps)
    return (lower + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high)) > 0


def _mean(x: jax.Array, mask: jax.Array) -> jaxppo.Mean:
    x = x.astype(jnp.float32) if x.dtype == bool else x
    return jaxppo.token_mean(jax.lax.stop_gradient(x), mask)


def _metrics(
    x: jax.Array,
    mask: jax.Array,
    clipped: jax.Array | None = None,
    lower: jax.Array | None = None,
) -> Metrics:
    none = jnp.zeros_like(x)
    return {
        "actor/ppo_kl": _mean(jaxppo.approx_kl_k1(x), mask),
        "actor/pg_clipfrac": _mean(none if clipped is None else clipped, mask),
        "actor/pg_clipfrac_lower": _mean(none if lower is None else lower, mask),
    }
