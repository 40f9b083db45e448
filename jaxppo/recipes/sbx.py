"""SBX 0.28 (Stable-Baselines3 in JAX), from `ppo/ppo.py`."""

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
    returns: jax.Array,
    entropy: jax.Array,
    clip_eps: ScalarLike = 0.2,
    entropy_coef: ScalarLike = 0.0,
    value_coef: ScalarLike = 0.5,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The whole loss of a minibatch: clip, squared error (not halved), entropy.

    SBX 0.28, `PPO._one_update`: advantages less their mean, over std (ddof 0, unlike
    SB3's) + 1e-8. Fault: `clip_range_vf` is accepted and not used, so there is no such
    parameter here; `jaxppo.clipped_value` is what it would be.
    """
    loss, metrics = jaxppo.ppo_loss(
        log_probs,
        old_log_probs,
        jaxppo.whiten(advantages, mask),
        mask,
        values=values,
        returns=returns,
        entropy=entropy,
        clip_eps=clip_eps,
        value_coef=2 * value_coef,
        entropy_coef=entropy_coef,
    )
    squared = jaxppo.token_mean(2 * jaxppo.squared_value(values, returns, mask), mask)
    return loss, {
        "train/pg_loss": metrics["policy_loss"],
        "train/value_loss": jax.lax.stop_gradient(squared),
        "train/entropy_loss": jax.lax.stop_gradient(jaxppo.token_mean(-entropy, mask)),
        "train/approx_kl": metrics["approx_kl"],
        "train/clip_fraction": metrics["clip_fraction"],
    }
