"""slime: its names in the reference values, and the recipes that give them."""

import jaxppo
from jaxppo.recipes import slime


def of(recipe, **options):
    options = dict(aggregate=jaxppo.token_mean) | options
    return lambda logp, b: recipe(logp, b.old, b.adv, b.mask, **options)


def kl(recipe, **options):
    def loss(logp, b):
        return jaxppo.token_sum(recipe(logp, b.ref, b.mask, **options), b.mask)

    return loss


def gae(b):
    out = slime.gae(b.token_rewards, b.values, gamma=0.99, lambda_=0.95)
    return out.advantages, {"0": out.returns}


LOSSES = {
    "slime/ppo token-mean": of(slime.ppo),
    "slime/ppo dual clip 3": of(slime.ppo, dual_clip=3.0),
    "slime/cispo": of(slime.cispo),
    "slime/kl/k1": kl(slime.kl),
    "slime/kl/k2": kl(slime.kl, estimator=jaxppo.kl_k2),
    "slime/kl/k3": kl(slime.kl, estimator=jaxppo.kl_k3),
    "slime/kl/low_var_kl": kl(slime.low_var_kl),
}

VALUES = {
    "slime/gae vanilla(.99,.95)": gae,
    "slime/gae chunked(.99,.95)": gae,
}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["gspo", "row_mean", "unbiased_kl", "value_loss"],
    "test_recipe_oracles.py::test_a_loss_is_its_formula",
) | dict.fromkeys(
    [
        "opsm",
        "tis",
        "icepop",
        "mis_weights",
        "mis_mask",
        "mis_veto",
        "group_advantages",
        "token_rewards",
        "reinforce_plus_plus_returns",
        "reinforce_plus_plus_baseline_advantages",
        "whitened",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
