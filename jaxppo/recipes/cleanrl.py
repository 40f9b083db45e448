"""CleanRL (fe8d8a0, 2026-04-20), from `ppo.py` and `rpo_continuous_action.py`.

Advantages are normalised within each minibatch, with torch's standard deviation. Fault:
episodes that a time limit ends are taken for terminated ones (`next_done`), which
biases the values; pass `next_values` and lambda = 0 there to `jaxppo.gae`.
"""

import jax
from jaxtyping import ScalarLike

import jaxppo


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    entropy: jax.Array,
    clip_eps: ScalarLike = 0.2,
    entropy_coef: ScalarLike = 0.01,
    value_coef: ScalarLike = 0.5,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The whole loss of a minibatch: clip, half the clipped squared error, entropy.

    CleanRL fe8d8a0, ppo.py: advantages less their mean, over std (ddof 1) + 1e-8; the
    value is clipped at the ratio's width, with the maximum (`clip_vloss`).
    """
    loss, metrics = jaxppo.ppo_loss(
        log_probs,
        old_log_probs,
        jaxppo.whiten(advantages, mask, ddof=1),
        mask,
        values=values,
        old_values=old_values,
        returns=returns,
        entropy=entropy,
        clip_eps=clip_eps,
        value_coef=value_coef,
        value_clip_eps=clip_eps,
        entropy_coef=entropy_coef,
    )
    return loss, {
        "losses/policy_loss": metrics["policy_loss"],
        "losses/value_loss": metrics["value_loss"],
        "losses/entropy": metrics["entropy"],
        "losses/old_approx_kl": metrics["approx_kl_k1"],
        "losses/approx_kl": metrics["approx_kl"],
        "losses/clipfrac": metrics["clip_fraction"],
    }


def rpo_mean(key: jax.Array, mean: jax.Array, *, alpha: ScalarLike = 0.5) -> jax.Array:
    """Robust policy optimisation: a normal's mean, moved by noise of U(-alpha, alpha).

    CleanRL fe8d8a0, rpo_continuous_action.py `get_action`: at updates only, before the
    log-prob of the action taken; acting is without noise (Rahman and Xue, 2022,
    arXiv:2212.07536).
    """
    noise = jax.random.uniform(key, mean.shape, mean.dtype, -1.0, 1.0)
    return mean + alpha * noise
