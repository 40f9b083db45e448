"""What is added to a policy loss."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._common import row_mean


def kl(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k3 per token.

    TRL 1.16.0, grpo_trainer.py, `use_bias_correction_kl=False` (not its default), and
    gmpo_trainer.py. Fault: not bounded, exp(log pi_ref - log pi) overflows; its
    gradient is not the divergence's. Use `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.kl_k3(x)


def bias_corrected_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    policy_log_ratio: Callable[..., jax.Array] = jaxppo.log_ratio,
) -> jax.Array:
    """r k3 per token, differentiated through both.

    TRL 1.16.0, grpo_trainer.py, `use_bias_correction_kl=True`, its default. Fault:
    with sequence-level ratios it takes them here, too, `jaxppo.sequence_log_ratio`,
    which is biased. Use the ratio of tokens instead, as is the default here.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    policy = policy_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return jaxppo.importance_weighted_kl(x, policy, estimator=jaxppo.kl_k3)


def kl_penalty(
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 0.0,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`kl` times `beta`, aggregated as the policy loss is; no weights touch it.

    TRL 1.16.0, grpo_trainer.py, for every `loss_type`: pass `jaxppo.token_mean` with
    `dapo`, `bnpo`, `cispo` and `vespo`. The metric is the mean over tokens.
    """
    metrics: dict[str, jaxppo.Metric] = {"kl": jaxppo.token_mean(kl, mask)}
    return kl_coef * aggregate(kl, mask), jax.lax.stop_gradient(metrics)


def entropy_bonus(
    entropy: jax.Array, mask: jax.Array, *, entropy_coef: ScalarLike = 0.0
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """- entropy_coef times the mean over tokens, whatever the policy loss's mean is.

    TRL 1.16.0, grpo_trainer.py. With `top_entropy_quantile` the bonus (not the metric)
    is over those tokens only: `mask & jaxppo.top_entropy_mask(...)`. The adaptive
    coefficient is `jaxppo.adaptive_entropy`.
    """
    mean = jaxppo.token_mean(entropy, mask)
    coef = jaxppo.Mean(
        jnp.full_like(mean.total, entropy_coef), jnp.ones_like(mean.count)
    )
    metrics: dict[str, jaxppo.Metric] = {"entropy": mean, "entropy_coef": coef}
    return -1 * (entropy_coef * mean), jax.lax.stop_gradient(metrics)
