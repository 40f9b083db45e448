"""ROLL 8eb27cc2: what its functions are called with to give the recorded outputs."""

import jaxppo
from jaxppo.recipes import roll


def ppo(aggregate):
    return lambda logp, b: roll.ppo(logp, b.old, b.adv, b.mask, aggregate=aggregate)


def summed(kl):
    return lambda logp, b: jaxppo.token_sum(kl(logp, b.ref, b.mask), b.mask)


def gae(b):
    out = roll.gae(b.token_rewards, b.values, b.mask, gamma=0.99)
    return out.advantages, {"0": out.returns}


LOSSES = {
    "roll/ppo core + agg_loss/token-mean": lambda logp, b: roll.ppo_token_mean(
        logp, b.old, b.adv, b.mask
    ),
    "roll/ppo core + agg_loss/seq-mean-token-sum": ppo(
        jaxppo.all_rows(jaxppo.sequence_sum)
    ),
    "roll/ppo core + agg_loss/seq-mean-token-mean": ppo(
        jaxppo.all_rows(jaxppo.sequence_mean)
    ),
    "roll/ppo core + agg_loss/seq-mean-token-sum-norm": ppo(
        roll.sequence_mean_token_sum_norm
    ),
    "roll/kl/kl": summed(roll.kl),
    "roll/kl/abs": summed(roll.kl_abs),
    "roll/kl/mse": summed(roll.kl_mse),
    "roll/kl/k3": summed(roll.kl_k3),
}

VALUES = {"roll/gae(.99,.95)": gae}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    [
        "cispo",
        "cispo_unified",
        "kimi15",
        "ppo_sequence",
        "tis",
        "topr",
        "unmasked_token_mean",
        "value_loss",
        "vanilla",
    ],
    "test_recipe_oracles.py::test_a_loss_is_its_formula",
) | dict.fromkeys(
    [
        "is_weights",
        "probability_difference",
        "train_infer_metrics",
        "reinforce_advantages",
        "group_advantages",
        "masked_whiten",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
