"""Losses with a clipped ratio."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._common import clip_ratios, row_mean, two_sided


def grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, the mean over all rows of their means.

    TRL 1.16.0, grpo_trainer.py, `loss_type="grpo"`. `delta` > 1 caps the ratio before
    the minimum is taken (INTELLECT-2): above 1 + high it is a dual clip. Fault: below
    1 + high, it hides from the metrics what is clipped above.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token, lower, upper = two_sided(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high, delta=delta
    )
    return aggregate(per_token * weights, mask), clip_ratios(lower, upper, mask)


def bnpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the mean over tokens.

    TRL 1.16.0, grpo_trainer.py, `loss_type="bnpo"`. Fault: it averages the means of
    microbatches, where a token's weight depends on its neighbours. As `Mean`s merge,
    this one is `dapo`.
    """
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.token_mean,
    )


def dapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the mean over the tokens of all microbatches and devices.

    TRL 1.16.0, grpo_trainer.py, `loss_type="dapo"`, its default. DAPO's paper has
    `clip_eps_high=0.28`; TRL's bounds are symmetric unless told otherwise.
    """
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.token_mean,
    )


def dr_grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    max_length: int,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the sum over tokens divided by rows times `max_length`.

    TRL 1.16.0, grpo_trainer.py, `loss_type="dr_grpo"`; `max_completion_length` there,
    by default 512. The paper's advantages are `unscaled_advantages`, not TRL's default.
    """
    row_sum = functools.partial(jaxppo.sequence_sum, scale=1 / max_length)
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.all_rows(row_sum),
    )


def luspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the mean over all rows of their sums.

    TRL 1.16.0, grpo_trainer.py, `loss_type="luspo"` with the ratios of tokens, TRL's
    default. The paper's are of sequences: `gspo(...,
    aggregate=jaxppo.all_rows(jaxppo.sequence_sum))`.
    """
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.all_rows(jaxppo.sequence_sum),
    )


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    delta: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The clip of a sequence's mean log-ratio.

    TRL 1.16.0, grpo_trainer.py, `importance_sampling_level="sequence"` with
    `loss_type="grpo"`; the fractions clipped are of all rows. TRL keeps PPO's bounds
    by default: GSPO's paper has 3e-4 and 4e-4. Of another `aggregate` TRL warns:
    `jaxppo.token_mean` weighs a sequence by its length.
    """
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token, *clipped = two_sided(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high, delta=delta
    )
    lower, upper = (
        jaxppo.masked_mean(clip, mask, axis=-1, keepdims=True) for clip in clipped
    )
    metrics = clip_ratios(lower, upper, jnp.ones_like(lower, bool))
    return aggregate(per_token * weights, mask), metrics


def gmpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.4,
    clip_eps_high: ScalarLike | None = None,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The geometric mean of a sequence's ratios, clipped in log space.

    TRL 1.16.0, experimental/gmpo/gmpo_trainer.py; advantages `(batch, 1)`, no weights:
    `top_entropy_quantile` takes tokens out of the geometric mean, `mask &
    jaxppo.top_entropy_mask(...)`. Fault: a row without a token adds -A to the value.
    """
    high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token = jaxppo.geometric_mean_surrogate(
        x, advantages, mask, clip_eps=clip_eps, clip_eps_high=high
    )
    per_row = jaxppo.masked_mean(per_token, mask, axis=-1, keepdims=True)
    constant = jax.lax.stop_gradient(-advantages.astype(x.dtype))
    some = jnp.any(mask, -1, keepdims=True)
    lower = ((-x > clip_eps) & (advantages < 0)).astype(x.dtype)
    upper = ((x > high) & (advantages > 0)).astype(x.dtype)
    loss = jaxppo.token_mean(jnp.where(some, per_row, constant))
    return loss, clip_ratios(lower, upper, mask)


def rloo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The clip of the whole sequence's ratio, the product over its tokens.

    TRL 1.16.0, rloo_trainer.py; advantages `(batch, 1)`, no weights; its KL term is in
    the reward, `penalised_rewards`. Fault: the product leaves the bounds the sooner
    the longer the sequence, and then has no gradient. Use `gspo` instead. Fault: a row
    without a token adds -A to the value.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_row, lower, upper = two_sided(
        jnp.sum(x, -1, keepdims=True),
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=math.inf,
    )
    metrics = clip_ratios(lower, upper, jnp.ones_like(lower, bool))
    return jaxppo.token_mean(per_row), metrics
