"""SkyRL: its names in the reference values, and the recipes that give them."""

import functools
import math

import jax

import jaxppo
from jaxppo.recipes import skyrl
from parity import torch_random


def of(recipe, **options):
    return lambda logp, b: recipe(logp, b.old, b.adv, b.mask, **options)


def off_rollout(recipe, **options):
    return lambda logp, b: recipe(logp, b.rollout, b.adv, b.mask, **options)


def over_length(logp, b):
    over_time = functools.partial(jaxppo.sequence_sum, scale=1 / b.time)
    aggregate = jaxppo.all_rows(over_time)
    return skyrl.regular(logp, b.old, b.adv, b.mask, aggregate=aggregate)


def over_prompts(logp, b):
    aggregate = skyrl.prompt_mean(b.group_size)
    return skyrl.regular(logp, b.old, b.adv, b.mask, aggregate=aggregate)


def clip_cov(logp, b):
    """With the tokens that torch draws after `manual_seed(0)`."""
    now = jax.lax.stop_gradient(logp)
    scaled = b.adv / jaxppo.token_mean(logp, b.mask).count
    x = jaxppo.log_ratio(now, b.old, b.mask, max_abs=math.inf)
    low = jaxppo.clip_fraction_lower(x, b.adv)
    clipped = low + jaxppo.clip_fraction_upper(x, b.adv)
    covariance = jaxppo.token_covariance(now, scaled, b.mask)
    between = (covariance > 0.05) & (covariance < 5.0)
    options = dict(key=jax.random.key(0), fraction=0.1, low=0.05)
    with torch_random.drawn(b.mask & between & (clipped == 0)):
        return skyrl.clip_cov(logp, b.old, b.adv, b.mask, **options)


def kl(estimator):
    def loss(logp, b):
        return jaxppo.token_sum(
            skyrl.kl(logp, b.ref, b.mask, estimator=estimator), b.mask
        )

    return loss


def kl_k3(logp, b):
    return jaxppo.token_sum(skyrl.kl_k3(logp, b.ref, b.mask), b.mask)


def outcome(recipe):
    def value(b):
        advantages = recipe(b.token_rewards, b.mask, group_ids=b.group)
        advantages = advantages * b.mask.astype(advantages.dtype)
        return advantages, {"0": advantages}

    return value


def reinforce_plus_plus(b):
    out = skyrl.reinforce_plus_plus_advantages(b.token_rewards, b.mask, gamma=0.99)
    return out.advantages, {"0": out.returns}


def gae(b):
    out = skyrl.gae(b.token_rewards, b.values, b.mask, gamma=0.99, lambda_=0.95)
    return out.advantages, {"0": out.returns}


def critic(b):
    loss, _ = skyrl.critic(b.values, b.old_values, b.returns, b.mask)
    return loss.value


LOSSES = {
    "skyrl/regular/token_mean": of(skyrl.regular),
    "skyrl/regular/token_mean_legacy": of(skyrl.regular),
    "skyrl/regular/sequence_mean": of(skyrl.regular, aggregate=skyrl.row_mean),
    "skyrl/regular/seq_mean_token_sum_norm": over_length,
    "skyrl/regular/prompt_mean": over_prompts,
    "skyrl/dual_clip": of(skyrl.regular, dual_clip=3.0),
    "skyrl/gspo/sequence_mean": of(skyrl.gspo),
    "skyrl/sapo/sequence_mean": of(skyrl.sapo),
    "skyrl/cispo": of(skyrl.cispo),
    "skyrl/dppo binary_tv": off_rollout(skyrl.dppo_tv),
    "skyrl/dppo binary_kl": off_rollout(skyrl.dppo_kl),
    "skyrl/rollout_is": off_rollout(skyrl.rollout_is),
    "skyrl/kl_cov": of(skyrl.kl_cov, fraction=0.1),
    "skyrl/clip_cov": clip_cov,
    "skyrl/kl/k1": kl(jaxppo.kl_k1),
    "skyrl/kl/abs": kl(jaxppo.kl_abs),
    "skyrl/kl/k2": kl(jaxppo.kl_k2),
    "skyrl/kl/k3": kl_k3,
    "skyrl-tinker/importance_sampling_loss (sum)": of(skyrl.tinker.importance_sampling),
    "skyrl-tinker/ppo_loss (sum)": of(skyrl.tinker.ppo),
    "skyrl-tinker/cispo_loss (sum)": of(skyrl.tinker.cispo),
}

VALUES = {
    "skyrl/critic(.2)": critic,
    "skyrl/adv/grpo": outcome(skyrl.grpo_advantages),
    "skyrl/adv/rloo": outcome(skyrl.rloo_advantages),
    "skyrl/adv/maxrl": outcome(skyrl.maxrl_advantages),
    "skyrl/adv/reinforce++": reinforce_plus_plus,
    "skyrl/adv/gae": gae,
}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["cross_entropy", "importance_sampling", "tinker.cross_entropy"],
    "test_recipe_oracles.py::test_a_loss_is_its_formula",
) | dict.fromkeys(
    [
        "token_weights",
        "sequence_weights",
        "token_mask",
        "outlier_mask",
        "sequence_mask",
        "trajectory_mask",
        "ratio_metrics",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
