"""torchrl 0.14.1: what its functions are called with to give the recorded outputs.

Recorded without a mask, and without an end of an episode.
"""

import jax.numpy as jnp

from jaxppo.recipes import torchrl


def gae(b):
    never = jnp.zeros(b.values.shape, bool)
    next_values = jnp.concatenate(
        [b.values[:, 1:], jnp.zeros_like(b.values[:, :1])], axis=1
    )
    return torchrl.gae(b.token_rewards, b.values, next_values, never, never).advantages


LOSSES = {}

VALUES = {"torchrl/gae": gae, "torchrl/vec_gae": gae}

UNREFERENCED = {
    "clip_ppo": "no value recorded; see tests/test_methods.py",
    "klpen_ppo": "no value recorded; see tests/test_methods.py",
    "klpen_coef": "a controller",
    "grpo": "needs a language model's wrapper; see tests/test_methods.py",
    "cispo": "needs a language model's wrapper; see tests/test_methods.py",
    "kl_to_ref": "needs a language model's wrapper; see tests/test_methods.py",
    "standardized": "no value recorded; see tests/test_methods.py",
}
