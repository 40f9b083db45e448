"""What is added to the policy loss: a KL penalty, imitation of what was right."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
    max_abs: ScalarLike = 20.0,
    max_value: ScalarLike = 10.0,
) -> jax.Array:
    """An estimate of KL per token, the log-ratio held within 20, the result within 10.

    NeMo-RL 7ea279ab, algorithms/utils.py `calculate_kl` without weights: for rewards
    (and with no bounds for metrics). As a loss its gradient is not KL's; use
    `score_weighted_kl` or `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=max_abs)
    return jaxppo.bounded_kl(x, estimator=estimator, max_value=max_value)


def score_weighted_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
    max_abs: ScalarLike = 20.0,
    max_value: ScalarLike = 10.0,
) -> jax.Array:
    """exp(log pi - sg log pi) k(x): the estimate's value, and on-policy KL's gradient.

    NeMo-RL 7ea279ab, loss_functions.py `ClippedPGLossFn` and utils.py `calculate_kl`,
    the default penalty. The weight reads 1 and adds the score-function term k(x)
    grad log pi (arXiv:2506.09477); right where the samples are the current policy's.
    Beyond `max_abs` or `max_value` nothing is differentiated.
    """
    return off_policy_kl(
        log_probs,
        jax.lax.stop_gradient(log_probs),
        ref_log_probs,
        mask,
        estimator=estimator,
        max_abs=max_abs,
        max_value=max_value,
    )


def off_policy_kl(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
    max_abs: ScalarLike = 20.0,
    max_value: ScalarLike = 10.0,
) -> jax.Array:
    """pi / pi_rollout k(x): the estimate and its gradient on the sampler's tokens.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `use_on_policy_kl_approximation`. The
    result is held after weighting. Fault: an overflowed weight counts 0. Bound it
    instead: `jaxppo.importance_weighted_kl` of bounded `jaxppo.log_ratio`s.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=max_abs)
    policy = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    finite = jnp.isfinite(jnp.exp(policy))
    weights = jnp.where(finite, jnp.exp(jnp.where(finite, policy, 0.0)), 0.0)
    raw = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    weights = jnp.where(raw == x, weights, jax.lax.stop_gradient(weights))
    weighted = lambda x: weights * estimator(x)
    return jaxppo.bounded_kl(x, estimator=weighted, max_value=max_value)


def kl_penalty(
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 0.01,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The penalty as a loss, aggregated as the policy's; logged without coefficient.

    NeMo-RL 7ea279ab, `ClippedPGLossFn`: `reference_policy_kl_penalty`.
    """
    penalty = aggregate(kl, mask)
    return penalty * kl_coef, jax.lax.stop_gradient({"kl_penalty": penalty})


def positive_nll(
    log_probs: jax.Array, rewards: jax.Array, mask: jax.Array
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """VAPO's imitation: -log pi, a mean over the tokens of samples of reward above 0.

    NeMo-RL 7ea279ab, `ClippedPGLossFn`, times `positive_example_nll_weight` (0 by
    default); `rewards` has one entry per sequence. Fault: it is divided by each
    microbatch's own count, and the quotients are added. Merge this `Mean` instead.
    """
    right = mask.astype(bool) & (rewards > 0)[:, None]
    loss = jaxppo.token_mean(-log_probs, right)
    return loss, jax.lax.stop_gradient({"positive_nll_loss": loss})
