"""prime-rl 559b4477: what its losses are called with to give the recorded outputs."""

from jaxppo.recipes import prime_rl

LOSSES = {
    "prime/default_loss_fn": lambda logp, b: prime_rl.default(
        logp, b.rollout, b.adv, b.mask
    ),
    "prime/ipo_loss_fn": lambda logp, b: prime_rl.ipo(logp, b.rollout, b.adv, b.mask),
}

VALUES = {}

UNREFERENCED = {
    "ref_kl": "no value recorded",
    "ce": "no value recorded",
    "grpo_advantages": "no value recorded: needs its episodes",
    "length_penalised_advantages": "no value recorded: needs its episodes",
    "max_rl_advantages": "no value recorded: needs its episodes",
    "rae_advantages": "no value recorded: needs its episodes",
}
