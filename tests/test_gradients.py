"""Gradients, against differences of the oracles: what is constant is held constant.

`chex.assert_numerical_grads` is not used: it passes gradients that are ten times wrong.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAYS, PUBLIC, gradient, jitted_gradient, mix
from jax.sharding import AxisType, PartitionSpec

import jaxppo

STEP = 1e-4
DIFFERENTIATED = [case for case in ARRAYS if case.grads]
each_differentiated_case = pytest.mark.parametrize("case", DIFFERENTIATED, ids=str)


def difference(f, x):
    """The derivative of f by each entry of x, good to 1e-10 where f has no kinks.

    Richardson's (4 D(h) - D(2 h)) / 3 of central differences: the error is h^4 of the
    fifth derivative, and rounding over h.
    """
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape):

        def moved(by, at=at):
            there = np.copy(x)
            there[at] += by
            return f(there)

        near, far = (moved(h) - moved(-h) for h in (STEP, 2 * STEP))
        out[at] = (8 * near - far) / (12 * STEP)
    return out


@each_differentiated_case
def test_gradients_are_the_oracles_derivatives(case, x64):
    inputs = case.inputs(0)
    grads = jitted_gradient(case)(**inputs)
    for name in case.grads.split():
        f = lambda x, name=name: mix(case.oracle_slope(**inputs | {name: x}))
        expected = difference(f, inputs[name])
        # A step that is terminal (discount 0) or cut (lambda 0) is detached from what
        # follows, which may be NaN; and an action that is not allowed has no logit.
        attached = np.isfinite(inputs[name]) & (inputs[name] != 0)
        got = np.where(attached, grads[name], 0)
        expected = np.where(attached, expected, 0)
        assert np.any(expected)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("case", [case for case in ARRAYS if case.constants], ids=str)
def test_constants_have_no_gradient(case):
    grads = jitted_gradient(case)(**case.inputs(0, np.float32))
    for name in case.constants.split():
        np.testing.assert_array_equal(grads.get(name, 0), 0, err_msg=name)


each_loss = pytest.mark.parametrize(
    "case", [case for case in ARRAYS if case.fn is jaxppo.ppo_loss], ids=str
)


@each_loss
def test_metrics_have_no_gradient(case):
    metrics = dataclasses.replace(case, differentiated=lambda out: out[1])
    for grad in jitted_gradient(metrics)(**case.inputs(0, np.float32)).values():
        np.testing.assert_array_equal(grad, 0)


# --- all of them, and through whatever transforms them ---

NO_GRADIENT = {  # choices, weights and diagnostics, constant; and what takes no arrays
    *("all_rows", "accumulate_grads", "learner", "finalize", "check_progress"),
    *("adaptive_kl", "adaptive_entropy", "head_plan", "overlong_penalty"),
    *("length_adaptive_lambda", "vespo_weights", "normalised_weights"),
    *("truncated_weights", "band_weights", "binary_tv", "binary_kl"),
    *("two_hot", "hl_gauss", "approx_kl_k1", "approx_kl_k3", "token_covariance"),
    *("clip_fraction", "clip_fraction_lower", "clip_fraction_upper"),
    *("bound_fraction", "ratio_max", "ratio_min", "effective_sample_size"),
    *("explained_variance", "correction_metrics", "optimal_token_baseline"),
    *("trust_region_mask", "clip_cov_mask", "kl_cov_mask", "top_entropy_mask"),
    *("rejection_mask", "off_policy_sequence_mask", "second_moment_mask"),
    *("varied_groups",),
}
ELSEWHERE = {"linear_policy_loss"}  # its own differences are in test_head.py


def test_every_function_is_differentiated_or_has_no_gradient():
    compared = {case.fn.__name__ for case in DIFFERENTIATED}
    assert compared.isdisjoint(NO_GRADIENT | ELSEWHERE)
    assert compared | NO_GRADIENT | ELSEWHERE == set(PUBLIC)


@each_differentiated_case
def test_gradients_under_transforms(case, unchecked):
    """A scan over remat over eight devices over vmap of them: as one by one."""
    devices, each = 8, 2
    batches = [case.inputs(seed, np.float32) for seed in range(devices * each)]
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    grad = gradient(case, through=jax.checkpoint)
    spread = jax.shard_map(
        lambda inputs: jax.vmap(lambda one: grad(**one))(inputs),
        mesh=jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,)),
        in_specs=PartitionSpec("d"),
        out_specs=PartitionSpec("d"),
    )

    @jax.jit
    def everywhere(stacked):
        turns = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), stacked)
        return jax.lax.scan(lambda n, x: (n, spread(x)), 0, turns)[1]

    got = everywhere(stacked)
    for i, inputs in enumerate(batches):
        for name, expected in jitted_gradient(case)(**inputs).items():
            scale = 1e-6 * np.max(np.abs(expected), initial=1)
            for place in ((0, i), (1, -1 - i)):
                np.testing.assert_allclose(
                    got[name][place], expected, rtol=1e-6, atol=scale, err_msg=name
                )


ONCE = {"selective_log_softmax"}  # as its documentation says


@each_differentiated_case
def test_second_derivatives(case, x64, unchecked):
    """Along a direction: the difference of gradients; or a refusal, as documented."""
    name = case.grads.split()[0]
    inputs = case.inputs(0)
    x = inputs.pop(name)
    along = np.where(np.isfinite(x), np.cos(np.arange(x.size)).reshape(x.shape), 0)

    @jax.jit
    def slope(x):
        return jnp.vdot(gradient(case)(**inputs, **{name: x})[name], along)

    if str(case) in ONCE:
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.jvp(slope, (x,), (along,))
        return
    _, second = jax.jvp(slope, (x,), (along,))
    expected = (8 * moved(slope, x, along, STEP) - moved(slope, x, along, 2 * STEP)) / (
        12 * STEP
    )
    np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-7)


def moved(f, x, along, step):
    """The difference of f, a step to either side."""
    return f(x + step * along) - f(x - step * along)
