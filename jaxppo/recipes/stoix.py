"""Stoix (8fff19c, 2026-03-18), from `utils/loss.py`, `multistep.py` and its systems.

Advantages are standardised once, over the whole batch (`standardised`), and the actor
and the critic have an optimiser each.
"""

import jax
from jaxtyping import ScalarLike

import jaxppo

Loss = tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]


def standardised(advantages: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Advantages less their mean, over sqrt(variance + 1e-5): `jax.nn.standardize`.

    Stoix 8fff19c, multistep.py, over the whole batch.
    """
    variance = jaxppo.masked_variance(advantages, mask)
    return jaxppo.centred(advantages, mask) * jax.lax.rsqrt(variance + 1e-5)


def actor(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    entropy: jax.Array,
    clip_eps: ScalarLike = 0.2,
    entropy_coef: ScalarLike = 0.01,
) -> Loss:
    """The actor's loss: clip and entropy.

    Stoix 8fff19c, `ppo_clip_loss` in ff_ppo.py.
    """
    loss, metrics = jaxppo.ppo_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        entropy=entropy,
        clip_eps=clip_eps,
        entropy_coef=entropy_coef,
    )
    return loss, {
        "actor_loss": metrics["policy_loss"],
        "entropy": metrics["entropy"],
    }


def critic(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike = 0.2,
    value_coef: ScalarLike = 0.5,
) -> Loss:
    """The critic's loss: half the larger of two squared errors.

    Stoix 8fff19c, `clipped_value_loss`: clipped at the ratio's width.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    mean = jaxppo.token_mean(loss, mask)
    return value_coef * mean, {"value_loss": jax.lax.stop_gradient(mean)}


def dpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    alpha: ScalarLike = 2.0,
    beta: ScalarLike = 0.6,
) -> Loss:
    """Discovered policy optimisation: -r A and its drift.

    Stoix 8fff19c, `dpo_loss`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.discovered_surrogate(x, advantages, alpha=alpha, beta=beta)
    mean = jaxppo.token_mean(loss, mask)
    return mean, {"actor_loss": jax.lax.stop_gradient(mean)}


def ppo_penalty(
    log_probs: jax.Array,
    kl: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    kl_coef: ScalarLike,
) -> Loss:
    """-r A + beta KL(old || new), with the exact divergence and a fixed beta.

    Stoix 8fff19c, `ppo_penalty_loss`. `kl` is
    `jaxppo.categorical_kl(old_logits, logits)`, or `jaxppo.normal_kl`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.unclipped_surrogate(x, advantages) + kl_coef * kl
    metrics: dict[str, jaxppo.Metric] = {"kl_divergence": jaxppo.token_mean(kl, mask)}
    return jaxppo.token_mean(loss, mask), jax.lax.stop_gradient(metrics)
