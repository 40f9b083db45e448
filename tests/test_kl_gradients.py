"""Which KL estimator has the KL divergence's gradient, in expectation, and which not.

The expectation over a categorical policy is a finite sum, so it is exact here; sampling
it, as training does, only adds noise, which one test does to see the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo

pytestmark = pytest.mark.usefixtures("x64")
ACTIONS = 7
LOGITS, REF, OLD = (
    np.random.default_rng(seed).normal(0, 0.7, ACTIONS) for seed in range(3)
)
k1, k2, k3 = jaxppo.kl_k1, jaxppo.kl_k2, jaxppo.kl_k3


def log_probs(logits):
    return jax.nn.log_softmax(jnp.asarray(logits))


def expected_gradient(term, sampler):
    """The mean gradient of a per-sample term, over all actions the sampler may take."""

    def mean(logits):
        weights = jax.lax.stop_gradient(jnp.exp(log_probs(sampler)))
        return jnp.sum(weights * term(log_probs(logits)))

    return jax.grad(mean)(jnp.asarray(LOGITS))


def from_reference(x):
    return jaxppo.log_ratio(x, log_probs(REF))


def plain(estimator):
    return lambda x: estimator(from_reference(x))


def straight_through(estimator):
    return plain(functools.partial(jaxppo.unbiased_gradient_kl, estimator=estimator))


def weighted(estimator, behaviour=None):
    """By the ratio to who sampled: the policy itself, unless it is said."""

    def term(x):
        sampler = jax.lax.stop_gradient(x) if behaviour is None else behaviour
        policy = jaxppo.log_ratio(x, sampler)
        ref = from_reference(x)
        return jaxppo.importance_weighted_kl(ref, policy, estimator=estimator)

    return term


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def kl_gradient():
    return jax.grad(lambda z: jaxppo.categorical_kl(z, jnp.asarray(REF)))(
        jnp.asarray(LOGITS)
    )


@pytest.mark.parametrize("estimator", [k1, k3], ids=["k1", "k3"])
def test_k1_and_k3_have_the_right_value(estimator):
    p = jnp.exp(log_probs(LOGITS))
    value = jnp.sum(p * estimator(from_reference(log_probs(LOGITS))))
    close(value, jaxppo.categorical_kl(jnp.asarray(LOGITS), jnp.asarray(REF)))


def test_k2_has_not():
    value = jnp.sum(jnp.exp(log_probs(LOGITS)) * k2(from_reference(log_probs(LOGITS))))
    assert (
        abs(value / jaxppo.categorical_kl(jnp.asarray(LOGITS), jnp.asarray(REF)) - 1)
        > 0.01
    )


@pytest.mark.parametrize(
    "term",
    [
        *(plain(k2), straight_through(k1), straight_through(k3)),
        *(weighted(k1), weighted(k3)),
    ],
    ids=[
        "k2",
        "straight_through-k1",
        "straight_through-k3",
        "weighted-k1",
        "weighted-k3",
    ],
)
def test_these_have_the_gradient_on_policy(term):
    close(expected_gradient(term, LOGITS), kl_gradient())


@pytest.mark.parametrize("estimator", [k1, k3], ids=["k1", "k3"])
def test_weighted_by_the_ratio_they_have_it_off_policy(estimator):
    term = weighted(estimator, log_probs(OLD))
    close(expected_gradient(term, OLD), kl_gradient())


@pytest.mark.parametrize(
    "term", [plain(k2), straight_through(k3)], ids=["k2", "straight_through"]
)
def test_without_the_ratio_they_have_not(term):
    assert np.max(np.abs(expected_gradient(term, OLD) - kl_gradient())) > 0.01


def test_k1_as_a_loss_has_none():
    close(expected_gradient(plain(k1), LOGITS), 0)


def test_k3_as_a_loss_has_the_reverse_divergences():
    reverse = jax.grad(lambda z: jaxppo.categorical_kl(jnp.asarray(REF), z))(
        jnp.asarray(LOGITS)
    )
    close(expected_gradient(plain(k3), LOGITS), reverse)
    assert np.max(np.abs(reverse - kl_gradient())) > 0.01


def test_abs_has_neither():
    grad = expected_gradient(plain(jaxppo.kl_abs), LOGITS)
    reverse = jax.grad(lambda z: jaxppo.categorical_kl(jnp.asarray(REF), z))(
        jnp.asarray(LOGITS)
    )
    for other in (kl_gradient(), reverse, 0):
        assert np.max(np.abs(grad - other)) > 0.01


def test_a_clamp_on_the_output_ends_the_gradient():
    x = jnp.array([-2.0, -4.0])  # k3: 4.4 and 49.6 nats
    slope = jax.grad(lambda x: jnp.sum(jaxppo.bounded_kl(x)))(x)
    close(slope, [1 - np.exp(2.0), 0.0])


@pytest.mark.parametrize(
    ("term", "unbiased"),
    [(straight_through(k3), True), (weighted(k3), True), (plain(k3), False)],
    ids=["straight_through", "weighted", "plain"],
)
def test_sampled(term, unbiased):
    """The same by Monte Carlo: within five standard errors, or far outside."""
    actions = jax.random.categorical(jax.random.key(0), LOGITS, shape=(100_000,))
    counts = jnp.bincount(actions, length=ACTIONS)

    def per_action(action):
        return jax.grad(lambda z: term(log_probs(z))[action])(jnp.asarray(LOGITS))

    grads = jax.vmap(per_action)(jnp.arange(ACTIONS))
    share = (counts.astype(float) / actions.size)[:, None]
    mean = jnp.sum(share * grads, 0, keepdims=True)
    error = jnp.sqrt(jnp.sum(share * (grads - mean) ** 2, 0) / actions.size)
    distance = np.max(np.abs(mean[0] - kl_gradient()) / error)
    assert distance < 5 if unbiased else distance > 20
