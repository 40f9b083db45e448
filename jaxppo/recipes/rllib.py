"""RLlib 2.60, from `algorithms/ppo/torch/ppo_torch_learner.py` and `ppo.py`.

Advantages are normalised once, over the whole train batch (`normalised`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def normalised(advantages: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Advantages less their mean, over max(std, 1e-4).

    RLlib 2.60, general_advantage_estimation.py, with NumPy's standard deviation.
    """
    std = jnp.sqrt(jaxppo.masked_variance(advantages, mask))
    return jaxppo.centred(advantages, mask) / jnp.maximum(std, 1e-4)


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    values: jax.Array,
    returns: jax.Array,
    entropy: jax.Array,
    kl: jax.Array,
    clip_eps: ScalarLike = 0.3,
    value_clip: ScalarLike = 10.0,
    value_coef: ScalarLike = 1.0,
    entropy_coef: ScalarLike = 0.0,
    kl_coef: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The whole loss: clip, squared error up to a bound, entropy, exact KL(old || new).

    RLlib 2.60, `compute_loss_for_module`, over the loss mask. Fault: `vf_clip_param`
    clamps the squared *error* at 10, so that a value off by more than 3.2 gets no
    gradient and never learns; `jaxppo.huber_value` bounds the gradient instead. `kl` is
    `jaxppo.categorical_kl(old_logits, logits)`, or `jaxppo.normal_kl`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    policy = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    squared = 2 * jaxppo.squared_value(values, returns, mask)
    held = jnp.where(squared <= value_clip, squared, value_clip)
    loss = policy + value_coef * held - entropy_coef * entropy + kl_coef * kl
    terms = {
        "policy_loss": policy,
        "vf_loss": held,
        "vf_loss_unclipped": squared,
        "entropy": entropy,
        "mean_kl_loss": kl,
    }
    metrics: dict[str, jaxppo.Metric] = {
        name: jaxppo.token_mean(term, mask) for name, term in terms.items()
    }
    return jaxppo.token_mean(loss, mask), jax.lax.stop_gradient(metrics)


def kl_coef_control(
    *, target: float = 0.01, init_coef: float = 0.2
) -> jaxppo.Controller:
    """The coefficient, times 1.5 above twice the target, halved below half of it.

    RLlib 2.60, `_update_module_kl_coeff`, after each update.
    """

    def init() -> jax.Array:
        return jnp.asarray(init_coef, jnp.float32)

    def update(coef: jax.Array, kl: jax.Array) -> jax.Array:
        factor = jnp.where(kl > 2 * target, 1.5, jnp.where(kl < 0.5 * target, 0.5, 1))
        return jnp.where(jnp.isfinite(kl), coef * factor, coef)

    return jaxppo.Controller(init, update, "mean_kl_loss")
