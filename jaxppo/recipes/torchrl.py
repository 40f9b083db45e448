"""torchrl 0.14.1: `torchrl/objectives/ppo.py` and `torchrl/objectives/llm/grpo.py`.

The losses of `ppo.py` are means over all steps; those of `grpo.py` are masked, but what
they log, and their KL term, is not. There is no guard on the log-ratio; the clip is in
log space, at log(1 - eps) and log(1 + high), which is the same clip.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def clip_ppo(
    log_probs: jax.Array,
    values: jax.Array,
    entropy: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    value_clip_eps: ScalarLike = math.inf,
    value_coef: ScalarLike = 1.0,
    entropy_coef: ScalarLike = 0.01,
    error: Callable[[jax.Array, jax.Array], jax.Array] = jaxppo.huber_value,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's total: the sum of `loss_objective`, `loss_critic` and `loss_entropy`.

    torchrl 0.14.1, ppo.py `ClipPPOLoss`: smooth L1 for the critic by default, the
    coefficient 1, no value clip, advantages as they are (`standardized`). Its "l2",
    without the half: `error=lambda v, target: 2 * jaxppo.squared_value(v, target)`.
    `clip_fraction` counts ratios out of bounds whatever the advantage.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    policy = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    held = jaxppo.clip_fraction(x, clip_eps=clip_eps, clip_eps_high=clip_eps_high)
    total, metrics = _with_critic(
        policy,
        values,
        entropy,
        old_values,
        returns,
        mask,
        value_clip_eps,
        value_coef,
        entropy_coef,
        error,
    )
    metrics |= _ratios(x, mask) | {"clip_fraction": jaxppo.token_mean(held, mask)}
    return total, jax.lax.stop_gradient(metrics)


def klpen_ppo(
    log_probs: jax.Array,
    values: jax.Array,
    entropy: jax.Array,
    kl: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array | None = None,
    *,
    kl_coef: ScalarLike = 1.0,
    value_clip_eps: ScalarLike = math.inf,
    value_coef: ScalarLike = 1.0,
    entropy_coef: ScalarLike = 0.01,
    error: Callable[[jax.Array, jax.Array], jax.Array] = jaxppo.huber_value,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO with a penalty: -r A + beta KL(pi_old || pi), and the critic and entropy.

    torchrl 0.14.1, ppo.py `KLPENPPOLoss`. kl is exact and differentiated:
    `jaxppo.categorical_kl(old_logits, logits)` or `jaxppo.normal_kl`. Fault: torchrl's
    `forward` changes beta in place, per minibatch, when it only evaluates, too, and
    before `backward`, so that the gradient is not that of the value: beta in it is
    already the next one. Use `klpen_coef`, once per update, instead.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    kl = kl.astype(x.dtype)
    policy = jaxppo.unclipped_surrogate(x, advantages) + kl_coef * kl
    total, metrics = _with_critic(
        policy,
        values,
        entropy,
        old_values,
        returns,
        mask,
        value_clip_eps,
        value_coef,
        entropy_coef,
        error,
    )
    metrics["kl"] = jaxppo.token_mean(kl, mask)
    metrics["kl_approx"] = jaxppo.token_mean(jaxppo.approx_kl_k1(x), mask)
    return total, jax.lax.stop_gradient(metrics)


def klpen_coef(
    *,
    target: ScalarLike = 0.01,
    init_coef: ScalarLike = 1.0,
    increment: ScalarLike = 2.0,
    decrement: ScalarLike = 0.5,
    metric: str = "kl",
) -> jaxppo.Controller:
    """beta, times `increment` above 1.5 targets, times `decrement` below target / 1.5.

    torchrl 0.14.1, ppo.py `KLPENPPOLoss.forward`; for `jaxppo.learner`'s `adaptive`.
    """

    def init() -> jax.Array:
        return jnp.asarray(init_coef, jnp.float32)

    def update(coef: jax.Array, observed: jax.Array) -> jax.Array:
        shrunk = jnp.where(observed < target / 1.5, coef * decrement, coef)
        return jnp.where(observed > target * 1.5, coef * increment, shrunk)

    return jaxppo.Controller(init, update, metric)


def grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GRPO's policy term, a token mean; with a wider `clip_eps_high`, its `DAPO`.

    torchrl 0.14.1, llm/grpo.py `GRPOLoss`, whose `prompt_mean` is
    `jaxppo.all_rows(jaxppo.sequence_mean)`. Fault: `clip_fraction` and `kl_approx` are
    divided by all positions, masked ones included. Use `jaxppo.token_mean` with the
    mask instead. Its KL term is `kl_to_ref`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    return aggregate(loss, mask), _llm_metrics(x, mask, clip_eps, clip_eps_high)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-clip(r, 1 - eps, 1 + high) A, which is not CISPO.

    torchrl 0.14.1, llm/grpo.py `CISPOLoss`. Fault: the clipped ratio is differentiated,
    and there is no log pi: a clipped token has no gradient at all, which CISPO is meant
    to prevent, not even one that PPO's minimum would pull back. Use `jaxppo.cispo`
    instead.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    held = jnp.clip(x, jnp.log1p(jnp.negative(clip_eps)), jnp.log1p(clip_eps_high))
    loss = jaxppo.unclipped_surrogate(held, advantages)
    return aggregate(loss, mask), _llm_metrics(x, mask, clip_eps, clip_eps_high)


def kl_to_ref(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike,
) -> jaxppo.Mean:
    """k3 against a reference, or the sampler: to be added to `grpo`'s loss.

    torchrl 0.14.1, llm/grpo.py `_kl_to_ref`. Fault: a mean over all positions, so that
    padding weakens the penalty. Use `jaxppo.token_mean(kl, mask)` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.token_mean(jaxppo.kl_k3(x)) * kl_coef


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    done: jax.Array,
    terminated: jax.Array,
    *,
    gamma: ScalarLike = 0.99,
    lambda_: ScalarLike = 0.95,
) -> jaxppo.Advantages:
    """GAE: bootstraps unless terminated, and forgets at done. Flags are bool.

    torchrl 0.14.1, value/functional.py `generalized_advantage_estimate`, with time
    last. `next_values` are of the states the steps led to.
    """
    return jaxppo.gae(
        rewards,
        values,
        gamma * (1 - terminated.astype(rewards.dtype)),
        lambda_=lambda_ * (1 - done.astype(rewards.dtype)),
        next_values=next_values,
    )


def standardized(advantages: jax.Array) -> jax.Array:
    """(A - mean) / max(std, 1e-6), ddof 1: ready for `clip_ppo`.

    torchrl 0.14.1, ppo.py `normalize_advantage=True`, once per minibatch. With a mask
    it is ddof 0 and 1e-4 there: `jaxppo.whiten`, but for the floor.
    """
    std = jnp.sqrt(jaxppo.masked_variance(advantages, ddof=1))
    return jaxppo.centred(advantages) / jnp.maximum(std, 1e-6)


def _with_critic(
    policy: jax.Array,
    values: jax.Array,
    entropy: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array | None,
    value_clip_eps: ScalarLike,
    value_coef: ScalarLike,
    entropy_coef: ScalarLike,
    error: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The policy's terms with the other two, and what they log."""
    critic = jaxppo.clipped_value(
        values, old_values, returns, mask, clip_eps=value_clip_eps, error=error
    )
    entropy = entropy.astype(policy.dtype)
    moved = jnp.abs(values - old_values) > value_clip_eps
    explained = jaxppo.explained_variance(values, returns, mask)
    terms = {
        "loss_objective": policy,
        "loss_critic": critic * value_coef,
        "loss_entropy": -entropy * entropy_coef,
        "entropy": entropy,
        "value_clip_fraction": moved.astype(critic.dtype),
    }
    metrics: dict[str, jaxppo.Metric] = {
        name: jaxppo.token_mean(term, mask) for name, term in terms.items()
    }
    metrics["explained_variance"] = jaxppo.Mean(explained, jnp.ones_like(explained))
    total = policy + critic * value_coef - entropy * entropy_coef
    return jaxppo.token_mean(total, mask), metrics


def _ratios(x: jax.Array, mask: jax.Array | None) -> dict[str, jaxppo.Metric]:
    """What `ClipPPOLoss` logs of its ratios."""
    share = jaxppo.effective_sample_size(x, mask)
    return {
        "ESS": jaxppo.Mean(share, jnp.ones_like(share)),
        "kl_approx": jaxppo.token_mean(jaxppo.approx_kl_k1(x), mask),
        "max_ratio": jaxppo.ratio_max(x, mask),
        "mean_ratio": jaxppo.token_mean(jnp.exp(x), mask),
    }


def _llm_metrics(
    x: jax.Array, mask: jax.Array, low: ScalarLike, high: ScalarLike
) -> dict[str, jaxppo.Metric]:
    """What `GRPOLoss` logs, most of it divided by all positions."""
    held = jaxppo.clip_fraction(x, clip_eps=low, clip_eps_high=high)
    metrics = {
        "clip_fraction": jaxppo.token_mean(held),
        "kl_approx": jaxppo.token_mean(jaxppo.approx_kl_k1(x)),
    }
    return jax.lax.stop_gradient(metrics | {"ESS": _ratios(x, mask)["ESS"]})
