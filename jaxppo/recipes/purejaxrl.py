"""purejaxrl (31756b1, 2024-09-09), from `ppo.py` and `dpo_continuous_action.py`.

Advantages are normalised within each minibatch, by the population's standard deviation.
Fault: an episode that a time limit ends is taken for a terminated one (`done`).
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

    purejaxrl 31756b1, ppo.py `_loss_fn`: advantages less their mean, over std (ddof 0)
    + 1e-8; the value is clipped at the ratio's width. It throws its metrics away.
    """
    loss, metrics = jaxppo.ppo_loss(
        log_probs,
        old_log_probs,
        jaxppo.whiten(advantages, mask),
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
        "value_loss": metrics["value_loss"],
        "loss_actor": metrics["policy_loss"],
        "entropy": metrics["entropy"],
    }


def dpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    alpha: ScalarLike = 2.0,
    beta: ScalarLike = 0.6,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Discovered policy optimisation, the policy's part.

    purejaxrl 31756b1, dpo_continuous_action.py: the advantages are normalised as in
    `ppo`, and the value and entropy terms are `ppo`'s. (Not direct preference
    optimisation.)
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    advantages = jaxppo.whiten(advantages, mask)
    loss = jaxppo.discovered_surrogate(x, advantages, alpha=alpha, beta=beta)
    mean = jaxppo.token_mean(loss, mask)
    return mean, {"loss_actor": jax.lax.stop_gradient(mean)}
