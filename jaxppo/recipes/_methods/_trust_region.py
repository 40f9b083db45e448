"""Methods that bound or penalise the distance instead of clipping the ratio."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._metrics import clipped, moved, report


def ppo_penalty(
    log_probs: jax.Array,
    kl: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    kl_coef: ScalarLike = 1.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO with a penalty instead of the clip: -r A + beta KL(pi_old || pi).

    Schulman et al., 2017 (arXiv:1707.06347, section 4), with `ppo_penalty_coef` for
    beta. kl is exact and differentiated: `jaxppo.categorical_kl(old_logits, logits)`
    or `jaxppo.normal_kl`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    kl = kl.astype(x.dtype)
    loss = jaxppo.unclipped_surrogate(x, advantages) + kl_coef * kl
    metrics = moved(x, mask) | report(mask, kl=kl)
    return jaxppo.token_mean(loss, mask), metrics


def ppo_penalty_coef(
    *, target: ScalarLike = 0.01, init_coef: ScalarLike = 1.0, metric: str = "kl"
) -> jaxppo.Controller:
    """The paper's beta: doubled above 1.5 times the target, halved below target / 1.5.

    Schulman et al., 2017 (arXiv:1707.06347, section 4). For
    `jaxppo.learner(adaptive={"kl_coef": ...})`.
    """

    def init() -> jax.Array:
        return jnp.asarray(init_coef, jnp.float32)

    def update(coef: jax.Array, observed: jax.Array) -> jax.Array:
        high, low = observed > 1.5 * target, observed < target / 1.5
        return jnp.where(high, 2 * coef, jnp.where(low, coef / 2, coef))

    return jaxppo.Controller(init, update, metric)


def spo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Simple policy optimisation: -(r A - |A| (r - 1)^2 / (2 eps)).

    Xie et al., 2024 (arXiv:2401.16025). Not verl-recipe's "SPO", a value tracker.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.quadratic_surrogate(x, advantages, clip_eps=clip_eps)
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps)
    return jaxppo.token_mean(loss, mask), metrics


def discovered_po(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    alpha: ScalarLike = 2.0,
    beta: ScalarLike = 0.6,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Discovered policy optimisation: -r A and a drift found by meta-learning.

    Lu et al., 2022 (arXiv:2210.05639). Not direct preference optimisation.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.discovered_surrogate(x, advantages, alpha=alpha, beta=beta)
    return jaxppo.token_mean(loss, mask), moved(x, mask)


def dppo_tv(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.15,
    high: ScalarLike = 0.15,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DPPO: -r A, but for tokens too far in total variation and going farther.

    Qi et al., 2026 (arXiv:2602.04879): |pi - mu| of the sampled token, the threshold
    the paper's. `old_log_probs` are the sampler's, mu's own.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    far = jaxppo.binary_tv(log_probs, old_log_probs, mask)
    keep = jaxppo.trust_region_mask(x, advantages, far, low=low, high=high)
    loss = jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)
    metrics = report(mask, kept_fraction=keep.astype(x.dtype), divergence=far)
    return jaxppo.token_mean(loss, mask), moved(x, mask) | metrics


def dppo_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.05,
    high: ScalarLike = 0.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DPPO by the KL divergence of "this token or not", KL(mu || pi).

    Qi et al., 2026 (arXiv:2602.04879); otherwise `dppo_tv`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    far = jaxppo.binary_kl(log_probs, old_log_probs, mask)
    keep = jaxppo.trust_region_mask(x, advantages, far, low=low, high=high)
    loss = jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)
    metrics = report(mask, kept_fraction=keep.astype(x.dtype), divergence=far)
    return jaxppo.token_mean(loss, mask), moved(x, mask) | metrics


def ipo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike = 0.1,
    kl_coef: ScalarLike = 1e-3,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """prime-rl's IPO: -r A where |pi - mu| <= threshold, plus kl_coef log(r)^2.

    The mask is symmetric: a token that is far gets no gradient back, either, but from
    the penalty, which all tokens have. Not identity preference optimisation.
    `old_log_probs` are the sampler's.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    far = jaxppo.binary_tv(log_probs, old_log_probs, mask)
    keep = far <= threshold
    loss = jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)
    metrics = report(mask, kept_fraction=keep.astype(x.dtype), divergence=far)
    return jaxppo.token_mean(loss + kl_coef * x**2, mask), moved(x, mask) | metrics


def clip_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    key: jax.Array,
    clip_eps: ScalarLike = 0.2,
    fraction: ScalarLike = 2e-4,
    low: ScalarLike = 1.0,
    high: ScalarLike = 5.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Clip-Cov: PPO without a few random tokens that would cost much entropy.

    Cui et al., 2025 (arXiv:2505.22617): of the tokens whose covariance of advantage and
    log-prob is in (low, high), a `fraction` of all is dropped. PPO's own clipped tokens
    are not drawn. The key is consumed.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps)
    held = jaxppo.clip_fraction_lower(x, advantages, clip_eps=clip_eps)
    held = held + jaxppo.clip_fraction_upper(x, advantages, clip_eps=clip_eps)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    covariance = jnp.where(held > 0, -jnp.inf, covariance)
    drop = jaxppo.clip_cov_mask(
        key, covariance, mask, fraction=fraction, low=low, high=high
    )
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    metrics |= report(mask, kept_fraction=(~drop).astype(x.dtype))
    return jaxppo.token_mean(jnp.where(drop, 0, loss), mask), metrics


def kl_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    fraction: ScalarLike = 2e-3,
    kl_coef: ScalarLike = 1.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """KL-Cov: -r A, and a penalty |log r| on the tokens of largest covariance.

    Cui et al., 2025 (arXiv:2505.22617): 2e-3 of the tokens for 7B parameters, 2e-4 for
    32B. verl's default coefficient is 0.1.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    chosen = jaxppo.kl_cov_mask(covariance, mask, fraction=fraction)
    penalty = jnp.where(chosen, kl_coef * jaxppo.kl_abs(x), 0)
    loss = jaxppo.unclipped_surrogate(x, advantages) + penalty
    metrics = report(mask, penalised_fraction=chosen.astype(x.dtype))
    return jaxppo.token_mean(loss, mask), moved(x, mask) | metrics
