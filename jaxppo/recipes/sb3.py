"""Stable-Baselines3 2.9, from `ppo/ppo.py`.

Advantages are normalised within each minibatch, with torch's standard deviation. The
value loss is not halved, so that its coefficient 0.5 weighs as 1 does elsewhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    values: jax.Array,
    old_values: jax.Array | None = None,
    returns: jax.Array,
    entropy: jax.Array,
    clip_eps: ScalarLike = 0.2,
    value_clip_eps: ScalarLike | None = None,
    entropy_coef: ScalarLike = 0.0,
    value_coef: ScalarLike = 0.5,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The whole loss of a minibatch: clip, squared error, entropy.

    SB3 2.9, `PPO.train`: advantages less their mean, over std (ddof 1) + 1e-8. Fault:
    with `clip_range_vf` the value is held near the old one without a maximum, and so
    loses its gradient where it has gone the wrong way; `jaxppo.clipped_value` keeps it.
    """
    loss, metrics = jaxppo.ppo_loss(
        log_probs,
        old_log_probs,
        jaxppo.whiten(advantages, mask, ddof=1),
        mask,
        entropy=entropy,
        clip_eps=clip_eps,
        entropy_coef=entropy_coef,
    )
    if value_clip_eps is None or old_values is None:
        squared = 2 * jaxppo.squared_value(values, returns, mask)
    else:
        squared = 2 * jaxppo.bounded_value(
            values, old_values, returns, mask, clip_eps=value_clip_eps
        )
    value = jaxppo.token_mean(squared, mask)
    total = jaxppo.Mean(loss.total + value_coef * value.total, loss.count)
    return total, {
        "train/policy_gradient_loss": metrics["policy_loss"],
        "train/value_loss": jax.lax.stop_gradient(value),
        "train/entropy_loss": jax.lax.stop_gradient(jaxppo.token_mean(-entropy, mask)),
        "train/approx_kl": metrics["approx_kl"],
        "train/clip_fraction": metrics["clip_fraction"],
    }


def bootstrapped(
    rewards: jax.Array,
    final_values: jax.Array,
    truncated: jax.Array,
    *,
    discount: ScalarLike = 0.99,
) -> jax.Array:
    """Rewards plus the discounted value of the state a time limit cut off.

    SB3 2.9, `collect_rollouts`: with it, and discount 0 there, plain GAE bootstraps as
    `jaxppo.gae` does with `next_values` and lambda = 0.
    """
    return rewards + jnp.where(truncated, discount * final_values, 0)
