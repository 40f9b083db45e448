"""Gradients, against differences of the oracles: what is constant is held constant.

`chex.assert_numerical_grads` is not used: it passes gradients that are ten times wrong.
"""

import dataclasses

import numpy as np
import pytest
from cases import ARRAYS, each_case, jitted_gradient, mix

import jaxppo

STEP = 1e-4


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


@pytest.mark.parametrize("case", [case for case in ARRAYS if case.grads], ids=str)
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


@each_case
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
