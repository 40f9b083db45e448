"""verl 0.9.1: its names in the reference values, and the recipes that give them."""

import functools
import math

import jax
import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import verl
from parity import torch_random


def loss(recipe, **options):
    return lambda logp, b: recipe(logp, b.old, b.adv, b.mask, **options)


def over_time(logp, b):
    aggregate = functools.partial(jaxppo.sequence_sum, scale=1 / b.time)
    return verl.vanilla(logp, b.old, b.adv, b.mask, aggregate=aggregate)


def clip_cov(logp, b):
    """With the tokens that torch draws after `manual_seed(0)`."""
    now = jax.lax.stop_gradient(logp)
    x = jaxppo.log_ratio(now, b.old, b.mask, max_abs=math.inf)
    clipped = jaxppo.clip_fraction_lower(x, b.adv) + jaxppo.clip_fraction_upper(
        x, b.adv
    )
    covariance = jaxppo.token_covariance(now, b.adv, b.mask)
    between = (covariance > 0.05) & (covariance < 5.0)
    options = dict(key=jax.random.key(0), fraction=0.1, low=0.05)
    with torch_random.drawn(b.mask & between & (clipped == 0)):
        return verl.clip_cov(logp, b.old, b.adv, b.mask, **options)


def corrected(logp, b):
    weights, _ = verl.token_weights(b.old, b.rollout, b.mask)
    return verl.vanilla(logp, b.old, b.adv, b.mask, weights=weights)


def penalty(recipe):
    return lambda logp, b: jaxppo.token_sum(recipe(logp, b.ref, b.mask), b.mask)


LOSSES = {
    "verl/vanilla/token-mean": loss(verl.vanilla),
    "verl/vanilla/token-sum": loss(verl.vanilla, aggregate=jaxppo.token_sum),
    "verl/vanilla/seq-mean-token-sum": loss(
        verl.vanilla, aggregate=jaxppo.sequence_sum
    ),
    "verl/vanilla/seq-mean-token-mean": loss(
        verl.vanilla, aggregate=jaxppo.sequence_mean
    ),
    "verl/vanilla/seq-mean-token-sum-norm": over_time,
    "verl/dppo_tv/token-mean": loss(verl.dppo_tv),
    "verl/dppo_kl/token-mean": loss(verl.dppo_kl),
    "verl/gspo/seq-mean-token-mean": loss(verl.gspo),
    "verl/sapo/seq-mean-token-mean": loss(verl.sapo),
    "verl/gpg/token-mean": lambda logp, b: verl.gpg(logp, b.adv, b.mask),
    "verl/geo_mean/token-mean": loss(verl.geo_mean),
    "verl/cispo/token-mean": loss(verl.cispo),
    "verl/kl_cov/token-mean": loss(verl.kl_cov, fraction=0.1),
    "verl/clip_cov(seed0, ratio.1, lb.05)": clip_cov,
    "verl/dro(beta=.1)": loss(verl.dro, beta=0.1),
    "verl/reinforce(IS from rollout)": lambda logp, b: verl.reinforce(
        logp, b.rollout, b.adv, b.mask
    ),
    "verl/vanilla/token-mean x token-TIS": corrected,
    "verl/kl_penalty/kl": penalty(verl.k1),
    "verl/kl_penalty/abs": penalty(verl.abs_kl),
    "verl/kl_penalty/mse": penalty(verl.k2),
    "verl/kl_penalty/low_var_kl": penalty(verl.low_var_kl),
    "verl/kl_penalty/k3+": penalty(verl.k3_plus),
    "verl/kl_penalty/k1+": penalty(verl.k1_plus),
}


def grouped(recipe):
    return lambda b: both(recipe(b.token_rewards, b.mask, group_ids=b.group))


def both(advantages):
    """verl returns outcome advantages twice, as returns, too."""
    if isinstance(advantages, jaxppo.Advantages):
        return advantages.advantages, {"0": advantages.returns}
    return advantages, {"0": advantages}


def baseline(recipe):
    return lambda b: both(
        recipe(b.token_rewards, b.old, b.sum_pi_squared, b.mask, group_ids=b.group)
    )


def value_loss(b):
    out, metrics = verl.value_loss(
        b.values, b.old_values, b.returns, b.mask, clip_eps=0.2
    )
    return out.value, {"0": metrics["critic/vf_clipfrac"]}


def remax(b):
    baselines = jnp.full(b.rows, 0.3)
    advantages = verl.remax(b.token_rewards, baselines, b.mask)
    return advantages, {
        "0": jaxppo.discounted_returns(b.token_rewards, 1.0, mask=b.mask)
    }


def weights(recipe, **bounds):
    def value(b):
        out, metrics = recipe(b.old, b.rollout, b.mask, **bounds)
        return out, metrics | verl.off_policy_metrics(b.old, b.rollout, b.mask)

    return value


def statistic(option, b):
    """The statistic that an option of verl's names."""
    x = jaxppo.log_ratio(b.old, b.rollout, b.mask)
    k = {"k1": -x, "k2": jaxppo.kl_k2(x), "k3": jaxppo.kl_k3(-x)}[option[-2:]]
    over = {
        "token": lambda k, mask, **_: k,
        "seq_sum": jaxppo.masked_sum,
        "seq_mean": jaxppo.masked_mean,
        "seq_max": jaxppo.masked_max,
    }[option[:-3]]
    return over(k, b.mask, axis=-1, keepdims=True)


def rejected(**bounds):
    """The mask that several options leave: a pair of bounds of the ratio, or one."""

    def value(b):
        each = []
        for option, bound in bounds.items():
            low, high = map(math.log, bound) if "k1" in option else (None, bound)
            given = statistic(option, b)
            each.append(verl.rejection(option, given, b.mask, low=low, high=high))
        keep, metrics = verl.combined(b.mask, *each)
        off_policy = verl.off_policy_metrics(b.old, b.rollout, b.mask)
        return keep.astype(jnp.float32), metrics | off_policy

    return value


def off_policy(b):
    metrics = verl.off_policy_metrics(b.old, b.rollout, b.mask)
    plain = {name.removeprefix("rollout_corr/"): x for name, x in metrics.items()}
    return plain["chi2_token"].value, {"0": plain["chi2_token"]} | plain


VALUES = {
    "verl/value_loss(clip .2)": value_loss,
    "verl/adv/gae(.99,.95)": lambda b: both(
        verl.gae(b.token_rewards, b.values, b.mask, discount=0.99, lambda_=0.95)
    ),
    "verl/adv/grpo": grouped(verl.grpo),
    "verl/adv/grpo_no_std": grouped(verl.grpo_no_std),
    "verl/adv/grpo_vectorized": grouped(verl.grpo),
    "verl/adv/grpo_passk": grouped(verl.grpo_passk),
    "verl/adv/rloo": grouped(verl.rloo),
    "verl/adv/rloo_vectorized": grouped(verl.rloo_vectorized),
    "verl/adv/opo": grouped(verl.opo),
    "verl/adv/reinforce_pp": lambda b: both(
        verl.reinforce_plus_plus(b.token_rewards, b.mask, discount=0.99)
    ),
    "verl/adv/reinforce_pp_baseline": grouped(verl.reinforce_plus_plus_baseline),
    "verl/adv/remax": remax,
    "verl/adv/gpg": grouped(verl.gpg_advantages),
    "verl/adv/otb": baseline(verl.optimal_token_baseline),
    "verl/adv/tir_otb": baseline(verl.tir_optimal_token_baseline),
    "verl/rollout_is/token/2.0": weights(verl.token_weights),
    "verl/rollout_is/token/0.8_1.25": weights(
        verl.token_band_weights, low=0.8, high=1.25
    ),
    "verl/rollout_is/sequence/2.0": weights(verl.sequence_weights),
    "verl/rollout_is/sequence/0.5_1.2": weights(
        verl.sequence_band_weights, low=0.5, high=1.2
    ),
    "verl/rollout_rs/token_k1/0.8_1.25": rejected(token_k1=(0.8, 1.25)),
    "verl/rollout_rs/token_k2/0.02": rejected(token_k2=0.02),
    "verl/rollout_rs/token_k3/0.02": rejected(token_k3=0.02),
    "verl/rollout_rs/seq_sum_k1/0.5_2.0": rejected(seq_sum_k1=(0.5, 2.0)),
    "verl/rollout_rs/seq_mean_k1/0.9_1.1": rejected(seq_mean_k1=(0.9, 1.1)),
    "verl/rollout_rs/seq_mean_k3/0.01": rejected(seq_mean_k3=0.01),
    "verl/rollout_rs/seq_max_k2/0.05": rejected(seq_max_k2=0.05),
    "verl/rollout_rs/seq_max_k3/0.05": rejected(seq_max_k3=0.05),
    "verl/rollout_rs/seq_mean_k1,token_k2/0.9_1.1,0.02": rejected(
        seq_mean_k1=(0.9, 1.1), token_k2=0.02
    ),
    "verl/offpolicy_metrics(chi2_token)": off_policy,
}
# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    [
        "batch_normalised",
        "batch_normalised_sequences",
        "gdpo",
        "kl_in_reward",
        "kl_control",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
