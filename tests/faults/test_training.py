"""Rows T01 to T13 that are the library's: steps that must not be taken."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxppo

OPTIMISERS = {
    "adam": optax.adam(1e-2),
    "rmsprop": optax.rmsprop(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "accumulating": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}
SIZES = list(itertools.product(["bfloat16", "float32"], [1e25, 1e30, -1e30]))


def linear(params, batch):
    """The mean of w times x: the gradient is the mean of x."""
    return jaxppo.token_mean(jnp.sum(params["w"]) * batch), {}


# Of float16 none that accumulates: what is kept in it overflows later, and is skipped
# until the run ends.
LARGE = [(name, dtype, size) for name in OPTIMISERS for dtype, size in SIZES]
LARGE += [(name, "float16", 1e4) for name in OPTIMISERS if name != "accumulating"]


@pytest.mark.parametrize(("name", "dtype", "size"), LARGE)
def test_T03_a_finite_gradient_whose_square_is_not(name, dtype, size):
    """Adam's second moment would be infinite, and its weight never move again."""
    learner = jaxppo.learner(linear, OPTIMISERS[name])
    update = jax.jit(learner.update)
    before = learner.init({"w": jnp.ones(3, dtype)})
    after, metrics = update(before, jnp.full(4, size, dtype))
    skipped = int(after.skipped) == 1
    assert int(metrics["skipped"].value) == skipped
    assert skipped or dtype == "float16"  # whose square float32 can hold
    if skipped:
        same = lambda x, y: np.testing.assert_array_equal(x, y)
        jax.tree.map(
            same, (after.params, after.opt_state), (before.params, before.opt_state)
        )
    for x in jax.tree.leaves(after.opt_state):
        assert np.all(np.isfinite(np.float64(x)))
    for _ in range(2):  # and it goes on
        after, _ = update(after, jnp.full(4, 0.5, dtype))
    assert after.skipped == 0
    assert np.all(after.params["w"] != before.params["w"])


def test_T03_what_float32_can_square_is_a_step():
    learner = jaxppo.learner(linear, OPTIMISERS["clipped"])
    before = learner.init({"w": jnp.ones(3)})
    after, metrics = jax.jit(learner.update)(before, jnp.full(4, 1e18))
    assert after.step == 1 and np.all(after.params["w"] != 1)
    np.testing.assert_allclose(metrics["grad_norm"].value, 1e18 * 3**0.5, rtol=1e-5)


WRONG = {  # parameters that are not those of the optimiser's state
    "smaller": ({"w": (1,)}, r"\['w'\]` has shape \(3,\), but .*\(1,\)"),
    "scalar": ({"w": ()}, r"\['w'\]` has shape \(3,\), but .*\(\)"),
    "larger": ({"w": (4,)}, r"\['w'\]` has shape \(3,\), but .*\(4,\)"),
    "renamed": ({"v": (3,)}, r"\['v'\]` is missing"),
    "more": ({"v": (3,), "w": (3,)}, r"\['v'\]` is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_S04_a_state_of_other_parameters(case, relaxed):
    """Optax would broadcast, and the parameter grow."""
    shapes, message = WRONG[case]
    total = lambda params, batch: (
        jaxppo.token_mean(sum(map(jnp.sum, params.values())) * batch),
        {},
    )
    learner = jaxppo.learner(total, optax.adam(1e-2))
    state = learner.init({"w": jnp.ones(3)})
    other = {name: jnp.ones(shape) for name, shape in shapes.items()}
    state = dataclasses.replace(state, params=other)
    for update in (learner.update, jax.jit(learner.update)):
        with pytest.raises(
            ValueError, match=f"learner.update: `state.opt_state.*{message}"
        ):
            update(state, jnp.ones(4))


def test_S04_a_state_of_more_parameters(relaxed):
    first = lambda params, batch: (jaxppo.token_mean(jnp.sum(params["v"]) * batch), {})
    learner = jaxppo.learner(first, optax.adam(1e-2))
    state = learner.init({"v": jnp.ones(3), "w": jnp.ones(3)})
    state = dataclasses.replace(state, params={"v": jnp.ones(3)})
    message = r"learner.update: `state.opt_state.*\['w'\]` is not in that of"
    with pytest.raises(ValueError, match=message):
        learner.update(state, jnp.ones(4))


def test_S04_parameters_that_are_not_floating_point():
    learner = jaxppo.learner(linear, optax.sgd(1.0))
    with pytest.raises(TypeError, match="int32"):
        learner.update(learner.init({"w": jnp.ones(3, jnp.int32)}), jnp.ones(4))
