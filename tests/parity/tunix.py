"""Tunix 0.1.7: what its functions are called with to give the recorded outputs."""

import jaxppo
from jaxppo.recipes import tunix

TOKEN_MEAN = dict(aggregate=jaxppo.token_mean)


def policy(loss, **kwargs):
    return lambda logp, b: loss(logp, b.old, b.adv, b.mask, **kwargs)


def with_kl(**kwargs):
    return lambda logp, b: tunix.grpo(
        logp, b.old, b.adv, b.mask, ref_log_probs=b.ref, **TOKEN_MEAN, **kwargs
    )


def summed(kl):
    return lambda logp, b: jaxppo.token_sum(kl(logp, b.ref, b.mask), b.mask)


def aggregated(aggregate):
    return lambda logp, b: aggregate(logp * b.adv, b.mask)


def over_width(aggregate):
    return lambda logp, b: aggregate(logp * b.adv, b.mask, norm=b.time)


def outcomes(b):
    return jaxppo.masked_sum(b.token_rewards, b.mask, axis=-1)


LOSSES = {
    "tunix/ppo_policy_loss": policy(tunix.ppo),
    "tunix/ppo dual c=3": policy(tunix.ppo, dual_clip=3.0),
    "tunix/grpo/token-mean": policy(tunix.grpo, **TOKEN_MEAN),
    "tunix/grpo/sequence-mean-token-mean": policy(tunix.grpo),
    "tunix/grpo dual c=3": policy(tunix.grpo, dual_clip=3.0, **TOKEN_MEAN),
    "tunix/grpo beta .04 (k1 in loss)": with_kl(),
    "tunix/grpo beta .04 low_var_kl": with_kl(kl=jaxppo.kl_k3),
    "tunix/gspo-token/sequence-mean-token-mean": policy(tunix.gspo_token),
    "tunix/kl/kl": summed(tunix.kl),
    "tunix/kl/mse_kl": summed(tunix.mse_kl),
    "tunix/kl/low_var_kl": summed(tunix.low_var_kl),
    "tunix/aggregate/token-mean": aggregated(jaxppo.token_mean),
    "tunix/aggregate/sequence-mean-token-mean": aggregated(jaxppo.sequence_mean),
    "tunix/aggregate/seq-mean-token-sum": aggregated(jaxppo.sequence_sum),
    "tunix/aggregate/sequence-mean-token-scale": over_width(
        tunix.sequence_mean_token_scale
    ),
    "tunix/aggregate/sequence-mean-token-sum-norm": over_width(
        tunix.sequence_mean_token_sum_norm
    ),
}

VALUES = {
    "tunix/adv/grpo": lambda b: tunix.grpo_advantages(
        outcomes(b), group_size=b.group_size
    ),
    "tunix/adv/rloo": lambda b: tunix.rloo_advantages(
        outcomes(b), group_size=b.group_size
    ),
    "tunix/gae": lambda b: (
        tunix.gae(b.token_rewards, b.values, b.mask, gamma=0.99).advantages
    ),
    "tunix/masked_whiten": lambda b: tunix.masked_whiten(b.logp, b.mask),
}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["dr_grpo_advantages"],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
) | {"value_loss": "test_methods.py::test_tunix_value_loss"}
