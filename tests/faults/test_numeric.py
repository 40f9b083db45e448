"""Rows N01 to N29: numbers that make other losses infinite, NaN or wrong."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import ARRAYS, MASK, MASKED, is_floating, mix
from test_oracles import is_extremum

import jaxppo

from . import hostile
from .hostile import CASES, FAR, HIT, SIGNS, outcome

# Half of the time would go into the checks of shapes.
pytestmark = pytest.mark.usefixtures("unchecked")
NAN, INF = math.nan, math.inf
SURROGATES = {
    name
    for name, case in hostile.POLICY.items()
    if case.grads and case.fn is not jaxppo.ppo_loss  # which has a penalty, too
}
# Terms of log pi itself: of a token that the policy cannot write they are infinite, as
# is its `binary_kl`. The learner skips that step (T01).
LITERAL = {"cispo", "topr", "binary_kl"}
BOUNDED = SURROGATES - LITERAL

of_runs = lambda runs: pytest.mark.parametrize("run", runs, ids="-".join)
each_run = of_runs(hostile.RUNS)
each_compiled_run = of_runs([run for run in hostile.RUNS if run[2] != "eager"])
# What has no advantage goes through the first gate alone.
each_token_run = of_runs([run for run in hostile.RUNS if run[0] == "token"])
each_dtype = pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64"]
)


def seen(run, prefixes, sign=""):
    """The outcomes of a run whose scenario is called so."""
    found = {
        k: x for k, x in outcome(*run).items() if k.startswith(prefixes) and sign in k
    }
    assert found
    return found


def finite(x):
    return np.all(np.isfinite(np.asarray(x, np.float64)))


def assert_finite(found, except_values=()):
    for scenario, (values, grads) in found.items():
        for name, out in values.items():
            if name not in except_values:
                assert all(map(finite, jax.tree.leaves(out))), (scenario, name)
        for name, by in grads.items():
            for k, x in by.items():
                assert finite(x), (scenario, name, k)


def at_hit(grads, name):
    return float(grads[name]["log_probs"][HIT])


# --- N01 to N04: far log-ratios of valid tokens ---


@each_compiled_run
def test_N01_far_above_with_a_positive_advantage(run):
    found = seen(run, "+100", "A>0")
    assert_finite(found)
    for values, grads in found.values():
        if run[0] == "token":
            name = "clipped_surrogate"
            high = CASES[name].hyper["clip_eps_high"]
            np.testing.assert_allclose(values[name][HIT], -(1 + high), rtol=1e-6)
            for name in BOUNDED:
                assert at_hit(grads, name) == 0, name


@each_run
def test_N02_far_above_with_a_negative_advantage(run):
    found = seen(run, ("+100", "old=-inf"), "A<0")
    assert_finite(found)
    for values, _ in found.values():
        if run[0] == "token":
            cap = CASES["clipped_surrogate"].hyper["dual_clip"]
            np.testing.assert_allclose(values["clipped_surrogate"][HIT], cap, rtol=1e-6)
            held = values["unclipped_surrogate"][HIT]
            np.testing.assert_allclose(held, math.exp(20), rtol=1e-5)
            assert values["bound_fraction"][HIT] == 1


@each_run
def test_N03_far_with_no_advantage(run):
    found = seen(run, ("+100", "-100"), "A=0")
    assert_finite(found)
    for scenario, (values, grads) in found.items():
        for name in SURROGATES:
            assert np.all(values[name][HIT] == 0), (scenario, name)
            assert at_hit(grads, name) == 0, (scenario, name)


@each_compiled_run
@pytest.mark.parametrize("who", ["old", "new"])
def test_N04_a_token_that_one_policy_never_writes(run, who):
    """No gradient, but of log pi itself: by its weight, which is at a bound there."""
    found = seen(run, f"{who}=-inf")
    assert_finite(found, except_values=LITERAL if who == "new" else ())
    bounds, cap = CASES["cispo"].hyper, CASES["topr"].hyper["cap"]
    weight = bounds["high" if who == "old" else "low"]
    for scenario, (values, grads) in found.items():
        for name in grads.keys() - LITERAL:
            assert at_hit(grads, name) == 0, (scenario, name)
        for name in values.keys() & LITERAL:
            assert finite(values[name][HIT]) == (who == "old"), (scenario, name)
        sign = SIGNS[scenario.split()[1]]
        slopes = {"cispo": weight * sign}
        if who == "old":
            slopes["topr"] = sign if sign > 0 else cap * sign
        for name, slope in slopes.items():
            got = at_hit(grads, name) / -math.cos(1)  # its share in `mix`
            np.testing.assert_allclose(got, slope, rtol=1e-2, err_msg=scenario)


# --- N05 to N08: what is in the padding, and what is not ---


def assert_as_clean(run, prefixes, clean="clean"):
    """Bit by bit, at the tokens that count; and no gradient at the others."""
    clean = outcome(*run)[clean]
    for scenario, (values, grads) in seen(run, prefixes).items():
        for name, out in values.items():
            where = lambda x: x[MASK] if x.shape == MASK.shape else x
            for got, expected in zip(
                jax.tree.leaves(out), jax.tree.leaves(clean[0][name]), strict=True
            ):
                message = f"{scenario}: {name}"
                np.testing.assert_array_equal(where(got), where(expected), message)
        for name, by in grads.items():
            for k, x in by.items():
                message = f"{scenario}: {name} by {k}"
                np.testing.assert_array_equal(x, clean[1][name][k], message)
                if k in hostile.PER_TOKEN:
                    assert not np.any(x[~MASK]), message


def of_padding(names):
    return tuple(f"pad {name} " for name in names)


@each_compiled_run
def test_N05_log_probs_that_are_not_numbers_in_the_padding(run):
    assert_as_clean(run, of_padding(hostile.LOG_PROBS))
    assert_as_clean(run, "pad gone", "pad gone clean")


@each_compiled_run
def test_N06_a_far_log_ratio_in_the_padding(run):
    assert_as_clean(run, "pad apart")


OTHERS = [k for k in hostile.NAMES if k not in ("mask", *hostile.LOG_PROBS)]


@each_run
def test_N07_other_arrays_in_the_padding(run):
    assert_as_clean(run, of_padding(OTHERS))


@each_compiled_run
def test_N08_a_nan_that_counts_shows(run):
    for name in [*hostile.LOG_PROBS, *OTHERS]:
        values, _ = outcome(*run)[f"nan {name}"]
        for case, out in values.items():
            takes = CASES[case].inputs()
            reads = name in takes or (name in hostile.gated_by(CASES[case]))
            if reads and case not in hostile.INDICATORS:
                leaves = [x for x in jax.tree.leaves(out) if x.dtype != bool]
                assert any(np.any(np.isnan(np.float64(x))) for x in leaves), case


# --- N09 to N12: masks ---


@each_compiled_run
def test_N09_no_token_counts(run):
    values, grads = outcome(*run)["no token"]
    for name, by in grads.items():
        assert all(not np.any(x) for x in by.values()), name
    assert values["ppo_loss"][0].value == 0


ROOMY = [c for c in ARRAYS if not c.rowed and c.batch.__name__ in ("tokens", "samples")]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (2, 0, 4)], ids=str)
def test_N09_axes_of_no_length(shape):
    """Values of their shape, and 0, as are the gradients; an extremum is of nothing."""

    def empty(case, name, x):
        of = shape[:-1] if x.ndim == 1 else shape
        of = (*shape[:-1], 1) if name in case.column.split() else of
        return np.zeros(of, np.int32 if x.dtype == np.int64 else x.dtype)

    def both(batches):
        found = {}
        for case in ROOMY:
            batch = batches[str(case)]

            def total(floats):
                out = case(**batch | floats)
                return mix(case.differentiated(out)), out

            floats = {k: x for k, x in batch.items() if is_floating(x)}
            found[str(case)] = jax.grad(total, has_aux=True)(floats)
        return found

    found = jax.jit(both)(
        {
            str(case): {k: empty(case, k, x) for k, x in case.inputs().items()}
            for case in ROOMY
        }
    )
    for name, (grads, out) in found.items():
        for x in jax.tree.leaves(out, is_leaf=is_extremum):
            nothing = {jaxppo.Max: -INF, jaxppo.Min: INF}.get(type(x), 0)
            nothing = -INF if name.startswith("masked_max") else nothing
            x = x.value if is_extremum(x) else x
            assert 0 in x.shape or x.shape in ((), (*shape[:-1], 1)), name
            np.testing.assert_array_equal(x, nothing, name)
        for x in grads.values():
            np.testing.assert_array_equal(x, 0, name)


MASK_DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", MASK_DTYPES)
def test_N12_fractional_masks_are_refused(dtype, x64):
    for case in MASKED:
        inputs = case.inputs(0, np.float32)
        for value in (1.0, 0.5, 2.0, NAN):
            mask = np.where(inputs["mask"], value, 0).astype(jnp.dtype(dtype))
            with pytest.raises(TypeError, match=f"`mask` has dtype {dtype}; expected"):
                jax.eval_shape(case, **inputs | {"mask": mask})


# --- N13 to N15, N18, N28: precision ---

LONG = 1000, 1000  # a million tokens
SUMS = {
    "sequence_mean": (jaxppo.sequence_mean, oracles.sequence_mean),
    "sequence_sum": (jaxppo.sequence_sum, oracles.sequence_sum),
    "masked_variance": (jaxppo.masked_variance, oracles.masked_variance),
    "whiten": (jaxppo.whiten, oracles.whiten),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SUMS)
def test_N13_a_million_tokens_in_half_precision(name, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 1, LONG).astype(jnp.dtype(dtype))
    mask = np.arange(LONG[1]) < rng.integers(1, LONG[1], LONG[0])[:, None]
    ours, oracle = SUMS[name]
    got, expected = jax.jit(ours)(x, mask), oracle(np.float64(x), mask)
    for got, expected in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_N15_a_hundred_thousand_steps(dtype):
    """With holes, which are skipped: as many steps as count."""
    steps = 100_000
    mask = np.arange(steps) % 4 > 0
    ones = jnp.asarray(np.where(mask, 1.0, NAN), dtype)
    left = np.cumsum(mask[::-1])[::-1]
    expected = np.where(mask, 1000 * (1 - 0.999 ** np.float64(left)), 0)
    zeros = jnp.asarray(np.where(mask, 0.0, NAN), dtype)
    mask = jnp.asarray(mask)
    given = dict(lambda_=1.0, mask=mask)
    every = {
        "gae": lambda: jaxppo.gae(ones, zeros, 0.999, **given).advantages,
        "vtrace": lambda: jaxppo.vtrace(zeros, ones, zeros, 0.999, **given).returns,
        "returns": lambda: jaxppo.discounted_returns(ones, 0.999, mask=mask),
    }
    for name, fn in every.items():
        # 0.999 in float32 is off by 2e-8 of it, a thousand times over.
        np.testing.assert_allclose(jax.jit(fn)(), expected, rtol=1e-4, err_msg=name)


@each_dtype
def test_N16_on_the_bounds_under_vmap(dtype):
    """The whole gradient at every bound: the surrogate's, the dual clip's, the value's.

    Under `vmap` of `grad` over the bounds themselves, compiled.
    """
    with jax.enable_x64(dtype == "float64"):
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        x = jnp.asarray([0.25, -0.25, 1.0], dtype)
        ratio = jnp.exp(x.astype(wide))
        off = jnp.abs(ratio[:2] - 1)

        def slope(x, advantage, **bounds):
            loss = lambda x: jaxppo.clipped_surrogate(x, advantage, **bounds)
            return jax.grad(loss)(x)

        both = lambda x, e, a: slope(x, a, clip_eps=e, clip_eps_high=e)
        for sign in (2.0, -2.0):
            a = jnp.asarray([sign, sign], dtype)
            got = jax.jit(jax.vmap(both))(x[:2], off, a)
            np.testing.assert_array_equal(got, (-ratio[:2] * sign).astype(dtype))
        dual = lambda x, c, a: slope(x, a, dual_clip=c)
        got = jax.jit(dual)(x[2], ratio[2], jnp.asarray(-2.0, dtype))
        np.testing.assert_array_equal(got, (2 * ratio[2]).astype(dtype))
        for fn in (jaxppo.clipped_value, jaxppo.bounded_value):
            value = lambda v, fn=fn: fn(
                v, jnp.zeros((), dtype), jnp.asarray(3.0, dtype), clip_eps=0.25
            )
            for v in (0.25, -0.25):
                got = jax.jit(jax.grad(value))(jnp.asarray(v, dtype))
                np.testing.assert_array_equal(got, np.asarray(v - 3.0, dtype))


@each_token_run
def test_N17_kl_of_far_log_ratios(run):
    for scenario, (values, _) in seen(run, tuple(FAR)).items():
        for name in ("kl_k2", "kl_k3", "kl_abs"):
            assert np.all(values[name] >= 0) and finite(values[name]), (scenario, name)


@each_dtype
def test_N18_the_slope_of_k3_does_not_end(dtype):
    """-expm1(-x) down to the gate's bound; a clamp of the value ends it at 2.61."""
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([-20.0, -10.0, -2.75, -1e-3, 1e-3, 0.5, 2.75, 20.0], dtype)
        for kl, sign in [(jaxppo.kl_k3, 1), (jaxppo.approx_kl_k3, 0)]:
            got = jax.jit(jax.vmap(jax.grad(kl)))(x)
            expected = -sign * np.expm1(-np.float64(x))
            rounded = {"float16": 2**-10, "bfloat16": 2**-7}.get(dtype, 1e-6)
            if dtype == "float16":  # it holds no slope of e^20
                got, expected = got[1:], expected[1:]
            np.testing.assert_allclose(np.float64(got), expected, rtol=rounded)


# --- N19, N27, N28, N29: heads ---


def heads(logits, actions):
    """The same distributions through every head that takes logits or their makers."""
    words = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    selective = jaxppo.selective_log_softmax(logits, actions)
    out = {"categorical": jaxppo.categorical(logits, actions), "selective": selective}
    for mode in ("recompute", "cached", "reference"):
        given = dict(mode=mode, vocab_block=2, token_block=2)
        bias = jnp.where(jnp.isneginf(logits[0]), -INF, 0).astype(logits.dtype)
        finite_logits = jnp.where(jnp.isneginf(logits), 0, logits)
        found = jaxppo.token_log_probs(
            finite_logits, words, actions, bias=bias, **given
        )
        out[mode] = found[:2]
    return out


@each_dtype
def test_N19_entropy_over_what_is_allowed(dtype):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.asarray([[0.0, -INF, 1.0, 2.0]] * 3, dtype)
        actions = jnp.array([0, 2, 3])
        p = np.exp([0.0, 1.0, 2.0]) / np.sum(np.exp([0.0, 1.0, 2.0]))
        tolerance = 1e-2 if "16" in dtype else 1e-6
        for name, (log_probs, entropy) in jax.jit(heads)(logits, actions).items():
            np.testing.assert_allclose(log_probs, np.log(p), tolerance, err_msg=name)
            expected = -np.sum(p * np.log(p))
            np.testing.assert_allclose(entropy, expected, tolerance, err_msg=name)

        def totals(logits):
            return {
                name: jnp.sum(log_probs + entropy)
                for name, (log_probs, entropy) in heads(logits, actions).items()
            }

        for name, slope in jax.jit(jax.jacrev(totals))(logits).items():
            assert finite(slope), name
            np.testing.assert_array_equal(slope[:, 1], 0, name)


@pytest.mark.parametrize("label", [-100, -1, 4, 2**31 - 1])
def test_N27_labels_outside_the_vocabulary(label):
    """No other token's score: masked by the heads of words, NaN of actions."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
    actions = jnp.array([1, label])
    found, right = (
        jax.jit(heads)(logits, actions),
        jax.jit(heads)(logits, actions * 0 + 1),
    )
    for name, (log_probs, _) in found.items():
        nothing = NAN if name == "categorical" else 0.0
        np.testing.assert_array_equal(log_probs[1], nothing, name)
        np.testing.assert_array_equal(log_probs[0], right[name][0][0], name)


def test_N28_the_first_ratio_is_one_in_bfloat16():
    """Of 256k words, as drawn by one program and learned from by another."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (2, 262_144)), jnp.bfloat16)
    targets = jnp.array([5, 262_143])
    exact = np.float64(logits)
    exact = exact - np.log(np.sum(np.exp(exact), -1, keepdims=True))
    for head in (jaxppo.categorical, jaxppo.selective_log_softmax):
        old = jax.jit(head)(logits, targets)[0]
        # 8 roundings of numbers of 16 nats, of 2^-20 each: in bfloat16, 2^-4.
        np.testing.assert_allclose(old, exact[[0, 1], targets], atol=2**-17)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def update(logits):
            x = jaxppo.log_ratio(head(logits, targets)[0], old)
            return jnp.sum(jaxppo.unclipped_surrogate(x, jnp.ones(2))), jnp.exp(x)

        (_, ratio), slope = update(logits)
        np.testing.assert_array_equal(ratio, 1)
        assert np.any(slope)


@each_dtype
def test_N29_the_slope_of_actions_at_the_ends(dtype):
    with jax.enable_x64(dtype == "float64"):
        u = jnp.asarray([[-40.0], [-9.0], [0.0], [9.0], [40.0]], dtype)
        total = lambda mean, log_std: sum(
            jnp.sum(x) for x in jaxppo.tanh_normal(mean, log_std, u)
        )
        slopes = jax.jit(jax.grad(total, (0, 1)))(0 * u, 0 * u)
        assert all(map(finite, slopes))


# --- N20 to N22: groups ---

GROUPED = [
    *(jaxppo.group_advantages, jaxppo.leave_one_out_advantages),
    *(jaxppo.leave_one_out_std, jaxppo.pass_at_k_advantages),
]


def grouped(**groups):
    """Every estimator of a batch, by name."""
    return lambda *data: {fn.__name__: fn(*data, **groups) for fn in GROUPED}


@each_dtype
def test_N20_constant_rewards(dtype):
    """0, however large, however many; and its gradient is a number."""
    sizes = np.array([1e-6, 0.1, 0.3, 0.9, -0.7, 7.0, 1e2, 1e4, 0.0])
    sizes = np.append(sizes, [1e9, -1e9]) if dtype != "float16" else sizes
    ids = np.repeat([5, -7, 0, 1], [2, 3, 7, 64])
    with jax.enable_x64(dtype == "float64"):
        for groups, n in [(dict(group_ids=ids), 76), (dict(group_size=7), 14)]:
            rewards = jnp.asarray(np.repeat(sizes[:, None], n, 1), dtype)

            @jax.jit
            def both(rewards, groups=groups):
                out, pull = jax.vjp(grouped(**groups), rewards)
                return out, pull(jax.tree.map(jnp.ones_like, out))[0]

            out, slope = both(rewards)
            for name, x in out.items():
                np.testing.assert_array_equal(x, 0, name)
            assert finite(slope)


STANDARDISED = {  # and the power of the size that comes out
    "whiten": (lambda x: jaxppo.whiten(x, eps=0.0), 0),
    "group": (lambda x: jaxppo.group_advantages(x, group_size=4, eps=0.0), 0),
    "pass": (lambda x: jaxppo.pass_at_k_advantages(x, group_size=4, eps=0.0), 0),
    "others": (lambda x: jaxppo.leave_one_out_std(x, group_size=4), 1),
    "explained": (lambda x: jaxppo.explained_variance(x[..., ::-1], x), 0),
}


@pytest.mark.parametrize("name", STANDARDISED)
def test_N24_N20_numbers_whose_squares_no_float_holds(name):
    """Of powers of 2, bit by bit what it is of numbers around 1, gradient and all."""
    fn, power = STANDARDISED[name]
    x = np.random.default_rng(0).normal(3, 2, (2, 4)).astype(np.float32)
    both = jax.jit(lambda x: (fn(x), jax.grad(lambda x: fn(x).ravel()[-1])(x)))
    out, slope = both(x)
    assert np.any(out)
    for size in np.float32([2.0**-100, 2.0**-70, 2.0**70, 2.0**100]):
        got, its_slope = both(size * x)
        np.testing.assert_array_equal(got, out * size**power)
        np.testing.assert_array_equal(its_slope * size ** (1 - power), slope)


@each_dtype
def test_N21_a_group_of_one(dtype):
    with jax.enable_x64(dtype == "float64"):
        rewards = jnp.asarray([5.0, -3.0], dtype)
        for groups in (dict(group_size=1), dict(group_ids=np.array([4, 2]))):
            alone = grouped(**groups)
            out = jax.jit(lambda x, f=alone: (f(x), jax.jacrev(f)(x)))(rewards)
            for x in jax.tree.leaves(out):
                np.testing.assert_array_equal(x, 0)


@each_dtype
def test_N22_a_reward_that_is_not_a_number(dtype):
    """Its group fails, alone and in sight; the learner skips such a step (T01)."""
    with jax.enable_x64(dtype == "float64"):
        rewards = jnp.asarray([1.0, 0.0, 2.0, 3.0, 1.0, 1.5, 0.0, 1.0, 5.0], dtype)
        hurt = jnp.stack([rewards.at[4].set(bad) for bad in (NAN, INF, -INF)])
        others = np.array([0, 1, 2, 6, 7, 8])
        for groups in (dict(group_size=3), dict(group_ids=np.arange(9) // 3)):
            estimate = jax.jit(grouped(**groups))
            expected, found = estimate(rewards), estimate(hurt)
            kept = estimate(hurt, jnp.isfinite(hurt))  # or it is left out, by a mask
            for name, got in found.items():
                for row in np.asarray(got):
                    np.testing.assert_array_equal(row[others], expected[name][others])
                    assert not np.all(np.isfinite(row[3:6])), name
                assert np.all(np.isfinite(kept[name])) and not np.any(kept[name][:, 4])


# --- N26: ends of episodes ---


@pytest.mark.parametrize("kind", [bool, np.int32, np.float32])
def test_N26_ends_and_time_limits(kind):
    """Flags of any kind make discounts; a time limit bootstraps, an end does not."""
    terminated = np.array([0, 1, 0, 0]).astype(kind)
    truncated = np.array([0, 0, 1, 0]).astype(kind)
    rewards, values = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    following = np.full(4, 10.0, np.float32)
    got = jaxppo.gae(
        rewards,
        values,
        np.where(terminated, 0, np.float32(0.5)),
        lambda_=np.where(truncated, 0, np.float32(1.0)),
        next_values=following,
    ).advantages
    # 1 + 0.5 * 10 - 0.5 is 5.5; the end has 1 - 0.5
    np.testing.assert_allclose(got, [5.5 + 0.5 * 0.5, 0.5, 5.5, 5.5])
    if kind is not np.float32:  # flags are not discounts
        with pytest.raises(TypeError, match="`discounts` has dtype"):
            jaxppo.gae(rewards, values, terminated)


def test_every_gradient_was_of_a_number():
    """The clean batch, through every run: else all of the above says nothing."""
    for run in hostile.RUNS:
        values, grads = outcome(*run)["clean"]
        assert_finite({"clean": (values, grads)})
        moved = [k for k, by in grads.items() if np.any(by["log_probs"])]
        assert len(moved) >= (20 if run[0] == "token" else 12), moved
