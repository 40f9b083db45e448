"""rlax 0.1.9: what its functions are called with to give the recorded outputs.

Those of one row were recorded without a mask.
"""

import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import rlax


def gamma(b):
    return jnp.full_like(b.values[0], 0.99)


def shifted(b):
    """The values of row 0 with 0 after the last step."""
    return jnp.append(b.values[0], jnp.zeros_like(b.values[0, 0]))


LOSSES = {
    "rlax/clipped_surrogate_pg_loss (row mean, no mask)": lambda logp, b: (
        rlax.clipped_surrogate_pg_loss(logp, b.old, b.adv, clip_eps=0.2)
    ),
}

VALUES = {
    "rlax/truncated_gae row0": lambda b: (
        rlax.truncated_generalized_advantage_estimation(
            b.token_rewards[0], gamma(b), 0.95, shifted(b)
        )
    ),
    "rlax/vtrace row0 errors": lambda b: rlax.vtrace(
        b.values[0],
        shifted(b)[1:],
        b.token_rewards[0],
        gamma(b),
        jaxppo.log_ratio(b.logp[0], b.old[0]),
    ),
}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["vtrace_td_error_and_advantage"],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
