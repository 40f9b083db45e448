"""Values: every function against its oracle, and at the points where losses break."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import (
    ARRAYS,
    MASK,
    MASKED,
    each_case,
    each_masked_case,
    jitted,
    jitted_gradient,
    mix,
    tokens,
)

import jaxppo

GROUP_SIZES = [2, 3, 7, 64]
SEEDS = range(3)
NAN, INF = math.nan, math.inf


def assert_close(got, expected, tolerance):
    """Each output to a tolerance relative to its largest entry, or to what it sums."""
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    for got, expected in zip(got, expected, strict=True):
        assert got.shape == expected.shape
        size = np.abs(expected)
        scale = tolerance * np.max(size, initial=1, where=np.isfinite(size))
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=scale)


# --- every function ---


@each_case
def test_value_in_float64(case, x64):
    for seed in SEEDS:
        inputs = case.inputs(seed)
        assert_close(jitted(case)(**inputs), case.oracle(**inputs), 1e-12)


@each_case
def test_value_in_float32(case):
    for seed in SEEDS:
        inputs = case.inputs(seed, np.float32)
        assert_close(jitted(case)(**inputs), case.oracle(**inputs), 1e-6)


def test_the_batch_binds_every_bound():
    names = "log_ratio advantages values old_values returns".split()
    for seed in SEEDS:
        batch = tokens(np.random.default_rng(seed))
        x, advantages, v, old, returns = (batch[name][MASK] for name in names)
        for out in (x > math.log(2.5), x < math.log(0.6)):
            assert np.any(out & (advantages > 0)) and np.any(out & (advantages < 0))
        shift = v - old
        held = old + np.clip(shift, -0.3, 0.3)
        farther = np.abs(v - returns) > np.abs(held - returns)
        for out in (shift > 0.3, shift < -0.3):
            assert np.any(out & farther) and np.any(out & ~farther)
        assert np.any(np.abs(x) < math.log(1.15)) and np.any(np.abs(shift) < 0.3)
        side = np.sign(advantages) * (np.exp(x) - 1)  # clipped by one width only
        assert np.any((0.15 < side) & (side < 0.35) & (x > 0))
        assert np.any((0.15 < side) & (side < 0.35) & (x < 0))


# --- on the bounds, exactly ---


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("log_ratio", [0.25, -0.25])
def test_at_a_clip_bound_the_whole_gradient_holds(log_ratio, dtype):
    x = jnp.full(3, log_ratio, dtype)
    ratio = jnp.exp(x.astype(jnp.float32))
    advantages = jnp.array([2.0, -2.0, 0.0], jnp.float32)
    loss = lambda x, **eps: jaxppo.clipped_surrogate(x, advantages, **eps)
    slope = jax.grad(lambda x, **eps: jnp.sum(loss(x, **eps)))

    eps = abs(float(ratio[0]) - 1)  # exact, so 1 + eps (or 1 - eps) is the ratio itself
    assert np.float32(1 + math.copysign(eps, log_ratio)) == ratio[0]
    name, other = ("clip_eps_high", "clip_eps")[:: 1 if log_ratio > 0 else -1]
    at, beyond = {name: eps, other: 0.01}, {name: eps * (1 - 1e-6), other: 0.01}
    np.testing.assert_array_equal(loss(x, **at), -ratio * advantages)
    whole = (-ratio * advantages).astype(dtype)
    np.testing.assert_array_equal(slope(x, **at), whole)
    np.testing.assert_array_equal(jax.jit(slope)(x, **at), whole)
    clipped = 0 if log_ratio > 0 else 1  # where the bound is the active one
    np.testing.assert_array_equal(slope(x, **beyond), whole.at[clipped].set(0))


def test_at_the_dual_clip_the_whole_gradient_holds():
    x, advantages = jnp.ones(1, jnp.float32), jnp.array([-2.0], jnp.float32)
    ratio = jnp.exp(x)
    loss = lambda x, c: jaxppo.clipped_surrogate(x, advantages, dual_clip=c)[0]
    at, beyond = float(ratio[0]), float(ratio[0]) * (1 - 1e-6)
    assert loss(x, at) == 2 * ratio[0]
    assert jax.grad(loss)(x, at) == 2 * ratio
    assert loss(x, beyond) == np.float32(beyond) * 2
    assert jax.grad(loss)(x, beyond) == 0


@pytest.mark.parametrize("returns", [-1.0, 1.125, 3.0])
@pytest.mark.parametrize("shift", [0.25, -0.25])
def test_at_the_value_clip_the_whole_gradient_holds(shift, returns):
    loss = lambda v: jaxppo.clipped_value(
        v, jnp.ones(()), jnp.array(returns), clip_eps=0.25
    )
    assert jax.grad(loss)(jnp.array(1 + shift)) == 1 + shift - returns


def test_at_its_bound_the_log_ratio_keeps_its_gradient():
    x = jnp.array([-21.0, -20.0, 20.0, 21.0])
    gate = lambda x: jaxppo.log_ratio(x, jnp.zeros(4))
    np.testing.assert_array_equal(gate(x), [-20, -20, 20, 20])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(gate(x)))(x), [0, 1, 1, 0])
    np.testing.assert_array_equal(jaxppo.bound_fraction(gate(x)), 1)
    np.testing.assert_array_equal(jaxppo.bound_fraction(gate(x * 0.9)), [0, 0, 0, 0])


def test_bounds_are_within():
    x = jnp.array([-0.25, 0.25])
    low, high = map(float, jnp.exp(x))
    inside = jaxppo.clip_fraction(x, clip_eps=1 - low, clip_eps_high=high - 1)
    np.testing.assert_array_equal(inside, 0)
    np.testing.assert_array_equal(
        jaxppo.band_weights(x, low=low, high=high), jnp.exp(x)
    )
    signs = jnp.array([-1.0, 1.0])
    lower = jaxppo.clip_fraction_lower(x, signs, clip_eps=1 - low)
    upper = jaxppo.clip_fraction_upper(x, signs, clip_eps=high - 1)
    np.testing.assert_array_equal([lower, upper], 0)
    # An advantage of 0 has no side to be clipped on.
    lower = jaxppo.clip_fraction_lower(x, 0 * signs, clip_eps=0.01)
    upper = jaxppo.clip_fraction_upper(x, 0 * signs, clip_eps=0.01)
    np.testing.assert_array_equal([lower, upper], 0)


# --- cancellation ---


@pytest.mark.parametrize("k3", [jaxppo.kl_k3, jaxppo.approx_kl_k3])
def test_k3_is_accurate_near_zero_and_never_negative(k3):
    size = np.concatenate([np.logspace(-15, 1.3, 2000), [0.2499999, 0.25, 0.2500001]])
    x = np.float32(np.concatenate([[0.0], size, -size]))
    got, sign = k3(jnp.asarray(x)), 1 if k3 is jaxppo.kl_k3 else -1
    np.testing.assert_allclose(got, oracles.kl_k3(np.float64(sign * x)), rtol=1e-5)
    assert np.all(got >= 0)


def test_k3_is_accurate_in_float64(x64):
    x = np.concatenate([np.logspace(-15, 1.3, 500), -np.logspace(-15, 1.3, 500)])
    got = jaxppo.kl_k3(jnp.asarray(x))
    np.testing.assert_allclose(got, oracles.kl_k3(x), rtol=1e-14)


@pytest.fixture(params=["whole", "masked"])
def constant_groups(request):
    """Batches of groups of equal rewards, of every size and 2 to 64 samples."""
    size = np.float32(np.append(np.logspace(-6, 9, 61), [0.1, 0.3, 0.7, 1e-30, 0.0]))
    size = np.concatenate([size, -size])
    if request.param == "whole":
        return [(jnp.tile(size[:, None], n), None, n) for n in GROUP_SIZES]
    mask = np.arange(65)[:, None, None] > np.arange(64)  # count, size, sample
    mask = np.tile(mask, (1, len(size), 1))
    return [(jnp.where(mask, size[:, None], 1e3), jnp.asarray(mask), 64)]


def test_equal_rewards_give_exactly_zero(constant_groups):
    scaled = functools.partial(jaxppo.group_advantages, eps=0.0)
    for rewards, mask, n in constant_groups:
        for estimator in (scaled, jaxppo.leave_one_out_advantages):
            np.testing.assert_array_equal(estimator(rewards, mask, group_size=n), 0)


def test_rewards_that_differ_by_rounding_are_equal():
    for n in GROUP_SIZES:
        for size in (1e-6, 0.1, 100.0, 1e9):
            rewards = np.full(n, size, np.float32)
            rewards[0] = np.nextafter(rewards[0], np.float32(INF))
            got = jaxppo.group_advantages(jnp.asarray(rewards), group_size=n)
            np.testing.assert_array_equal(got, 0)


def test_advantages_that_differ_by_rounding_are_not_whitened():
    for size in (1e-6, 0.1, 100.0, 1e9):
        x = np.full((3, 7), size, np.float32)
        x[0, 0] = np.nextafter(x[0, 0], np.float32(INF))
        np.testing.assert_array_equal(jaxppo.whiten(jnp.asarray(x)), 0)


def test_close_rewards_are_not_equal():
    rewards = jnp.array([100.0, 100.1, 100.0, 100.1])
    got = jaxppo.group_advantages(rewards, group_size=4, ddof=0)
    np.testing.assert_allclose(got, [-1, 1, -1, 1], rtol=1e-4)


@pytest.mark.parametrize("value", [1e-6, 0.1, 0.9, 1e9])
def test_constant_input_has_no_variance(value):
    x = jnp.full((3, 7), value)
    np.testing.assert_array_equal(jaxppo.whiten(x, eps=0.0), 0)
    np.testing.assert_array_equal(jaxppo.centred(x), 0)
    assert jaxppo.masked_variance(x) == 0
    assert jaxppo.explained_variance(x + 1, x) == 0
    slope = jax.grad(
        lambda x: jnp.sum(jaxppo.whiten(x, eps=0.0) * jnp.arange(7.0)[None])
    )
    assert np.all(np.isfinite(slope(x)))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("count", [0, 1])
def test_whitening_next_to_nothing(count, ddof):
    x, mask = jnp.array([0.9, 5.0, -5.0]), jnp.arange(3) < count
    np.testing.assert_array_equal(jaxppo.whiten(x, mask, ddof=ddof), 0)
    assert jaxppo.masked_variance(x, mask, ddof=ddof) == 0
    slope = jax.grad(lambda x: jnp.sum(jaxppo.whiten(x, mask, ddof=ddof)))(x)
    np.testing.assert_array_equal(slope, 0)


def test_no_more_entries_than_ddof_have_no_variance():
    x = jnp.array([1.0, 3.0])
    for ddof in (2, 3):
        assert jaxppo.masked_variance(x, ddof=ddof) == 0
        advantages = jaxppo.group_advantages(x, group_size=2, ddof=ddof)
        np.testing.assert_array_equal(advantages, 0)


def test_a_large_mean_costs_no_digits():
    x = np.float32(1e6 + np.random.default_rng(0).normal(0, 2, (3, 7)))
    everything = np.ones(x.shape, bool)
    for name in ("masked_variance", "centred", "whiten"):
        ours = getattr(jaxppo, name)(jnp.asarray(x))
        oracle = getattr(oracles, name)(np.float64(x), everything)
        np.testing.assert_allclose(ours, oracle, rtol=1e-5)


# --- nothing, infinity and NaN ---


def is_extremum(x):
    return isinstance(x, (jaxppo.Max, jaxppo.Min))


@each_masked_case
def test_nothing_counts(case):
    inputs = case.inputs(0, np.float32)
    inputs["mask"] = np.zeros_like(inputs["mask"])
    for x in jax.tree.leaves(jitted(case)(**inputs), is_leaf=is_extremum):
        nothing = {jaxppo.Max: -INF, jaxppo.Min: INF}.get(type(x), 0)
        nothing = -INF if case.fn is jaxppo.masked_max else nothing
        np.testing.assert_array_equal(x.value if is_extremum(x) else x, nothing)
    for x in jitted_gradient(case)(**inputs).values():
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("case", [case for case in MASKED if not case.rowed], ids=str)
def test_an_empty_row_counts_for_nothing(case):
    inputs = case.inputs(0, np.float32)
    empty = ~inputs["mask"].any(-1)
    assert empty.sum() == 1
    rest = {k: x if k in case.shared.split() else x[~empty] for k, x in inputs.items()}
    got, without = jitted(case)(**inputs), jitted(case)(**rest)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(without), strict=True):
        if x.ndim:
            nothing = -INF if case.fn is jaxppo.masked_max else 0
            np.testing.assert_array_equal(x[empty], nothing)
            x = x[~empty]
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def one_token_each(pairs):
    new, old = jnp.array(pairs, jnp.float32).T
    return new[:, None], old[:, None]


FAR = [(-1.0, -101.0), (-101.0, -1.0), (-1.0, -1001.0), (-1001.0, -1.0)]
ENDLESS = [(-1.0, -INF), (-INF, -1.0)]


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize(
    "kl", [jaxppo.kl_k1, jaxppo.kl_k2, jaxppo.kl_k3, jaxppo.unbiased_gradient_kl]
)
def test_absurd_log_ratios_give_finite_losses_and_gradients(sign, kl):
    new, old = one_token_each([*FAR, *ENDLESS, (-1.0, -1.1)])

    def loss(new, old, ref):
        advantages = jnp.full(new.shape, sign)
        return jaxppo.ppo_loss(
            new, old, advantages, ref_log_probs=ref, kl_coef=0.1, kl=kl
        )

    mean, metrics = loss(new, old, old)
    assert np.isfinite(mean.value)
    assert all(np.isfinite(value) for value in jaxppo.finalize(metrics).values())
    assert metrics["bound_fraction"].total == 6
    grads = jax.grad(lambda *args: loss(*args)[0].total, (0, 1, 2))(new, old, old)
    np.testing.assert_array_equal(grads[0][:-1], 0)  # held
    assert grads[0][-1] != 0
    np.testing.assert_array_equal(grads[1:], 0)


INDICATORS = [  # 0 or 1: a NaN is on neither side of a bound
    *(jaxppo.clip_fraction, jaxppo.clip_fraction_lower, jaxppo.clip_fraction_upper),
    jaxppo.bound_fraction,
    # What they choose leaves a NaN in, which shows in the loss: the next test.
    *(jaxppo.trust_region_mask, jaxppo.clip_cov_mask, jaxppo.kl_cov_mask),
    *(jaxppo.varied_groups, jaxppo.top_entropy_mask, jaxppo.rejection_mask),
    *(jaxppo.off_policy_sequence_mask, jaxppo.second_moment_mask),
]


@pytest.mark.parametrize("case", [c for c in ARRAYS if c.fn not in INDICATORS], ids=str)
def test_nan_at_a_valid_token_shows(case):
    inputs = case.inputs(0, np.float32)
    for name, x in inputs.items():
        if x.dtype == np.float32:
            poisoned = np.copy(x)
            poisoned[(0,) * x.ndim] = NAN
            out = jax.tree.leaves(jitted(case)(**inputs | {name: poisoned}))
            assert any(np.any(np.isnan(x)) for x in out), name


# (`kl_cov_mask` drops nothing: it is a choice of what is penalised.)
SELECTIONS = [case for case in ARRAYS if case.fn in INDICATORS[4:]]
SELECTIONS = [case for case in SELECTIONS if case.fn is not jaxppo.kl_cov_mask]


@pytest.mark.parametrize("case", SELECTIONS, ids=str)
def test_nan_at_a_valid_token_is_not_dropped(case):
    inputs = case.inputs(0, np.float32)
    drops = case.fn is jaxppo.clip_cov_mask  # True where a token goes
    for name, x in inputs.items():
        if x.dtype == np.float32:
            poisoned = np.copy(x)
            poisoned[(0,) * x.ndim] = NAN
            out = jitted(case)(**inputs | {name: poisoned})
            assert out[0, 0] != drops, name


@pytest.mark.parametrize(
    ("fn", "last"),
    [
        (jaxppo.discounted_returns, "bootstrap_value"),
        (jaxppo.gae, "bootstrap_value"),
        (jaxppo.gae, "next_values"),
        (jaxppo.vtrace, "bootstrap_value"),
        (jaxppo.vtrace, "next_values"),
    ],
)
def test_a_terminal_step_forgets_what_it_led_to(fn, last):
    inputs = dict(rewards=jnp.array([1.0, 2.0, 3.0]), values=jnp.array([0.1, 0.2, 0.3]))
    inputs["log_ratio"] = jnp.array([0.3, -0.3, 0.1])
    inputs = {k: x for k, x in inputs.items() if k in inspect.signature(fn).parameters}
    discounts = jnp.array([0.9, 0.9, 0.0])

    @jax.jit
    def value_and_grad(inputs, end):
        end = {"bootstrap_value": end, "next_values": jnp.stack([0.5, 0.5, end])}[last]
        total = lambda inputs: mix(fn(**inputs, discounts=discounts, **{last: end}))
        return jax.value_and_grad(total)(inputs)

    for bad in (NAN, INF, -INF):
        got, expected = value_and_grad(inputs, bad), value_and_grad(inputs, 0.0)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- heads ---


def test_actions_that_are_not_allowed():
    logits = jnp.array([[0.0, -INF, 1.0], [-INF] * 3])
    log_probs, entropy = jaxppo.categorical(logits, jnp.array([1, 0]))
    np.testing.assert_array_equal(log_probs, -INF)
    expected = oracles.categorical(np.array(logits), np.array([0, 0]), np.array([1, 0]))
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-6)
    for k in (0, 1):
        total = lambda z: jnp.sum(jaxppo.categorical(z, jnp.array([1, 0]))[k])
        assert not np.any(np.isnan(jax.grad(total)(logits)))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint32])
def test_an_action_outside_the_table_is_nan(dtype, unchecked):
    info = np.iinfo(dtype)
    actions = [-100, -1, 3, 2**31, 2**32, 2**32 + 1, info.min, info.max]
    actions = [a for a in actions if info.min <= a <= info.max and a not in range(3)]
    logits = np.zeros((len(actions), 3), np.float32)
    log_probs, entropy = jaxppo.categorical(logits, np.array(actions, dtype))
    np.testing.assert_array_equal(log_probs, NAN)
    np.testing.assert_allclose(entropy, math.log(3), rtol=1e-6)


def test_far_pre_tanh_actions_keep_their_log_prob():
    u = np.float32([[-40.0], [9.0], [100.0]])
    log_probs, _ = jaxppo.tanh_normal(0 * jnp.asarray(u), jnp.zeros(1), jnp.asarray(u))
    expected = oracles.normal_log_density(np.float64(u), 0, 0)
    expected = expected + 2 * (np.abs(u) - math.log(2))  # log cosh^2, this far out
    np.testing.assert_allclose(log_probs, expected[:, 0], rtol=1e-6)


@pytest.mark.parametrize("std", [0.01, 1.0, 5.0])
def test_entropy_of_the_tanh_normal_to_a_millionth(std, x64):
    mean = jnp.linspace(-3.0, 3.0, 5)[:, None]
    log_std, mask = jnp.full(1, math.log(std)), np.ones(5, bool)
    _, entropy = jaxppo.tanh_normal(mean, log_std, mean)
    _, expected = oracles.tanh_normal(mean, log_std, mean, mask)
    np.testing.assert_allclose(entropy, expected, atol=1e-6)


ENDS = [  # alpha, beta, action, log-prob
    *[(1.0, 3.0, 0.0, math.log(3)), (0.5, 3.0, 0.0, INF), (2.0, 3.0, 0.0, -INF)],
    *[(3.0, 1.0, 1.0, math.log(3)), (3.0, 0.5, 1.0, INF), (3.0, 2.0, 1.0, -INF)],
    *[(1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0)],
    *[(0.5, 0.5, -1e-3, -INF), (1.0, 1.0, 1.5, -INF), (2.0, 2.0, INF, -INF)],
    *[(NAN, 3.0, 0.0, NAN), (2.0, NAN, 0.0, NAN), (NAN, 2.0, 1.0, NAN)],
    *[(NAN, 2.0, -1.0, NAN), (2.0, 2.0, NAN, NAN)],
    *[(0.0, 2.0, 0.3, NAN), (2.0, -1.0, 0.3, NAN)],
    *[(2.0, 2.0, 1e-40, -INF), (1.0, 3.0, 1e-40, math.log(3))],  # subnormal
]


def test_beta_actions_at_the_ends():
    a, b, x, expected = np.float32(ENDS).T[..., None]
    a, b, x = map(jnp.asarray, (a, b, x))
    log_probs = lambda a, b: jaxppo.beta(a, b, x)[0]
    for fn in (log_probs, jax.jit(log_probs)):
        np.testing.assert_allclose(fn(a, b), expected[:, 0], rtol=1e-6)
    slopes = jax.jit(jax.grad(lambda a, b: jnp.sum(log_probs(a, b)), (0, 1)))(a, b)
    slopes = np.stack(slopes)
    assert np.all(np.isfinite(slopes[:, ~np.isnan(expected)]))
    np.testing.assert_array_equal(slopes[:, np.isinf(expected)], 0)
    own = [part[np.isfinite(expected)] for part in (*slopes, a, b, x < 0.5)]
    by_a, by_b, a, b, low = own  # of log b at 0 and of log a at 1: the power is held
    np.testing.assert_allclose([by_a * a, by_b * b], [~low, low], rtol=1e-6)


def test_a_row_with_an_impossible_action_is_impossible():
    """Whatever the others' densities: inf - inf is no NaN, but NaN is."""
    a, x = jnp.array([[0.5, 2.0]] * 3), jnp.array([[0.0, 0.0], [0.3, 0.0], [NAN, 0.0]])
    log_probs, _ = jax.jit(jaxppo.beta)(a, a, x)
    np.testing.assert_array_equal(log_probs, [-INF, -INF, NAN])
    slope = jax.jit(jax.grad(lambda a: jnp.sum(jaxppo.beta(a, a, x[:2])[0])))(a[:2])
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("size", [10.0, 1e3, 1e6])
def test_betas_of_any_size_are_accurate(size):
    """To roundings; the formulas as they stand, in float32, are off by nats at 1e6."""
    rng = np.random.default_rng(0)
    drawn = lambda low, high: rng.uniform(low, high, (1000, 1))
    alpha = size ** drawn(-3 if size == 10 else 0.5, 1)
    params = [np.float32(x) for x in (alpha, alpha * 10 ** drawn(-0.5, 0))]
    refs = [np.float32(x * 4 ** drawn(-1, 1)) for x in params]
    actions = np.float32(np.clip(rng.beta(*np.float64(params)), 1e-7, 1 - 1e-7))
    log_probs, entropy = jax.jit(jaxppo.beta)(*params, actions)
    kl = jax.jit(jaxppo.beta_kl)(*params, *refs)
    mask, (*params, x) = np.ones(1000, bool), map(np.float64, (*params, actions))
    expected = oracles.beta(*params, x, mask)
    # 8 steps for each of three gammas, of 2^-24 each. Where means are compared, that is
    # sqrt(size) 2^-24 standard deviations, of which a sample is 4 off.
    mean = 64 * 2**-24 + 4 * math.sqrt(size) * 2**-24
    for got, expected, tolerance in [
        (log_probs, expected[0], mean),
        (entropy, expected[1], 32 * 2**-24),
        (kl, oracles.beta_kl(*params, *map(np.float64, refs), mask), mean),
    ]:
        error = np.abs(got - expected) / np.maximum(1, np.abs(expected))
        assert np.max(error) < tolerance


@pytest.mark.parametrize(("fn", "parts"), [(jaxppo.beta, 3), (jaxppo.beta_kl, 4)])
def test_betas_under_the_mask_make_no_nan(fn, parts):
    """Not even on the way, where `jax_debug_nans` would stop at it."""
    x = jnp.array([[0.3, 0.7], [0.0, 0.0], [-1.0, 0.0]])
    with jax.debug_nans(True):
        out = fn(*[x] * parts, jnp.arange(3) < 1)
    assert not np.any(np.asarray(out)[..., 1:])


def test_beta_kl_of_the_near_and_of_the_far():
    """As close as one update brings them, and as far as their means then cancel."""
    near = [[1e6, 3e5, 1.0002e6, 2.9995e5], [2e3, 5e3, 2001.0, 5003.0]]
    far = [[1.78e5, 7.52e5, 0.138, 19.78], [3e5, 5.4e4, 16.8, 0.943]]
    for rows, tolerance in [(near, 1e-5), (far, 1e-4)]:
        parts = [np.float32(x)[:, None] for x in zip(*rows, strict=True)]
        expected = oracles.beta_kl(*map(np.float64, parts), np.ones(2, bool))
        got = jax.jit(jaxppo.beta_kl)(*parts)
        np.testing.assert_allclose(got, expected, rtol=tolerance)


# --- low precision ---


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_long_trajectories_in_half_precision(dtype):
    steps = 2000
    ones = jnp.ones(steps, dtype)
    advantages, _ = jaxppo.gae(ones, 0 * ones, 0.99, lambda_=1.0)
    left = np.arange(steps, 0, -1)
    np.testing.assert_allclose(advantages, 100 * (1 - 0.99**left), rtol=1e-5)
    returns = jaxppo.discounted_returns(ones, 0.99)
    np.testing.assert_allclose(returns, 100 * (1 - 0.99**left), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize(
    "aggregate", [jaxppo.token_mean, jaxppo.token_sum, jaxppo.masked_mean]
)
def test_a_million_tokens_in_half_precision(aggregate, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(0.5, 1, 2**20), dtype)
    mask = jnp.arange(x.size) < 10**6
    exact = np.sum(np.float64(x)[: 10**6])
    out = aggregate(x, mask)
    if aggregate is jaxppo.masked_mean:
        np.testing.assert_allclose(out, exact / 10**6, rtol=1e-6)
    else:
        np.testing.assert_allclose(out.total, exact, rtol=1e-6)
        assert out.count == (10**6 if aggregate is jaxppo.token_mean else 0)
