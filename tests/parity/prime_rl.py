"""prime-rl 559b4477: what its losses are called with to give the recorded outputs."""

from jaxppo.recipes import prime_rl

LOSSES = {
    "prime/default_loss_fn": lambda logp, b: prime_rl.default(
        logp, b.rollout, b.adv, b.mask
    ),
    "prime/ipo_loss_fn": lambda logp, b: prime_rl.ipo(logp, b.rollout, b.adv, b.mask),
}

VALUES = {}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["ce", "ref_kl"],
    "test_recipe_oracles.py::test_a_loss_is_its_formula",
) | dict.fromkeys(
    [
        "grpo_advantages",
        "length_penalised_advantages",
        "max_rl_advantages",
        "rae_advantages",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
