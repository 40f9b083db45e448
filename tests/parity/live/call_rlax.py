"""rlax 0.1.9: without a mask; two of the three on row 0 alone."""

from importlib import import_module


def losses(b):
    """The mean over all tokens, those of the padding too."""

    def clipped(logp):
        ratio = import_module("jax").numpy.exp(logp - b.old)
        return import_module("rlax").clipped_surrogate_pg_loss(
            ratio.reshape(-1), b.advantages.reshape(-1), 0.2
        )

    return {"rlax/clipped_surrogate_pg_loss (row mean, no mask)": clipped}


def values(b):
    """Of row 0, with 0 for the value after the last step."""
    jnp, rlax = import_module("jax").numpy, import_module("rlax")
    steps = jnp.append(b.values[0], jnp.zeros_like(b.values[0, :1]))
    discount = jnp.full_like(b.values[0], 0.99)
    rewards, ratio = b.token_rewards[0], jnp.exp(b.logp[0] - b.old[0])
    return {
        "rlax/truncated_gae row0": lambda: (
            rlax.truncated_generalized_advantage_estimation(
                rewards, discount, 0.95, steps
            )
        ),
        "rlax/vtrace row0 errors": lambda: rlax.vtrace(
            steps[:-1], steps[1:], rewards, discount, ratio
        ),
    }
