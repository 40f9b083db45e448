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

# No value was recorded of these: who tests them.
UNREFERENCED = {
    "clip_ppo": "test_methods.py::test_torchrl_clip_ppo",
    "klpen_ppo": "test_methods.py::test_torchrl_klpen_ppo",
    "klpen_coef": "test_methods.py::test_the_coefficient_of_the_penalty",
    "grpo": "test_methods.py::test_torchrl_of_language_models",
    "cispo": "test_methods.py::test_torchrl_of_language_models",
    "kl_to_ref": "test_methods.py::test_torchrl_of_language_models",
    "standardized": "test_methods.py::test_torchrl_of_language_models",
}
