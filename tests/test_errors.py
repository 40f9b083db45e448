"""What is wrong is said at trace time: function, argument, shapes and the fix."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAYS, PUBLIC, each_case, each_masked_case, is_floating

import jaxppo

pytestmark = pytest.mark.usefixtures("unchecked")

NAN, INF = math.nan, math.inf


def message(error, fn, **inputs):
    """What an error says, which is the same inside jit."""
    traced = {k: x for k, x in inputs.items() if getattr(x, "shape", ())}
    rest = {k: x for k, x in inputs.items() if k not in traced}
    with pytest.raises(error) as eager:
        fn(**inputs)
    with pytest.raises(error) as inside_jit:
        jax.jit(lambda traced: fn(**traced, **rest))(traced)
    assert str(inside_jit.value) == str(eager.value)
    return str(eager.value)


# --- shapes: nothing broadcasts silently ---

# (batch, 1) is right
PER_SEQUENCE = ("advantages", "weights", "discounts", "lambda_", "statistic")
NUMBERS = ("discounts", "lambda_")  # and so is a number

planes = [
    (case, name)
    for case in ARRAYS
    if case.batch.__name__ in ("tokens", "samples") and not case.column
    for name, x in case.inputs().items()
    if x.ndim == 2 and len(case.inputs()) > 1
]


@pytest.mark.parametrize(
    ("case", "name"), planes, ids=[f"{case}-{name}" for case, name in planes]
)
def test_no_wrong_shape_broadcasts(case, name):
    inputs = case.inputs(0, np.float32)
    b, t = inputs[name].shape
    wrong = [(b,), (t,), (1, t), (b, 1), (b, t + 1), (t, b), (1, b, t), ()]
    if name in PER_SEQUENCE:
        wrong.remove((b, 1))
    if name in NUMBERS:
        wrong.remove(())
    if name == "group_ids":  # one for each sample, whatever their rows
        wrong.remove((t,))
    for shape in wrong:
        bad = np.zeros(shape, inputs[name].dtype)
        said = message(ValueError, case, **inputs | {name: bad})
        assert said.startswith(f"{case.fn.__name__}: `")
        assert f"`{name}` has shape {shape}" in said
        assert f"has shape ({b}, {t})" in said
        assert "; pass " in said


X = jnp.ones((2, 3))
ROWS = jnp.ones(2)
TERM = dict(log_ratio=X, advantages=X)
STEPS = dict(rewards=X, values=X, discounts=0.9)
CHOICE = dict(logits=jnp.ones((2, 3, 5)), actions=jnp.ones((2, 3), int))
NORMAL = dict(mean=X, log_std=X)
BETA = dict(alpha=X, beta=X)
REF_BETA = dict(ref_alpha=X, ref_beta=X)
LOSS = dict(log_probs=X, old_log_probs=X, advantages=X)


@pytest.mark.parametrize(
    ("fn", "inputs", "fragments"),
    [
        *[
            (
                fn,
                given | dict(bootstrap_value=jnp.ones(shape)),
                [f"`bootstrap_value` has shape {shape}", "(2, 3)", "pass shape (2,)"],
            )
            for fn, given in [
                (jaxppo.gae, STEPS),
                (jaxppo.vtrace, STEPS | dict(log_ratio=X)),
                (jaxppo.discounted_returns, dict(rewards=X, discounts=0.9)),
            ]
            for shape in [(), (1,), (3,), (2, 1), (2, 3)]
        ],
        *[
            (
                jaxppo.categorical,
                CHOICE | dict(actions=jnp.ones(shape, int)),
                [f"`actions` has shape {shape}", "`logits`", "pass shape (2, 3)"],
            )
            for shape in [(), (2,), (3,), (1, 3), (2, 1), (2, 3, 5), (2, 3, 1)]
        ],
        *[
            (
                fn,
                given | {name: jnp.ones(shape)},
                [
                    f"`{name}` has shape {shape}",
                    "`mean` has shape (2, 3)",
                    "pass shape",
                ],
            )
            for fn, given in [
                (jaxppo.diagonal_normal, NORMAL | dict(actions=X)),
                (jaxppo.tanh_normal, NORMAL | dict(pre_tanh_actions=X)),
            ]
            for name in given.keys() - {"mean"}
            for shape in [(), (2,), (1, 3), (2, 1), (2, 4), (3, 2), (3,)]
            if (name, shape) != ("log_std", (3,))
        ],
        *[
            (
                fn,
                given | {name: jnp.ones(shape)},
                [
                    f"`{name}` has shape {shape}",
                    "`alpha` has shape (2, 3)",
                    "pass shape",
                ],
            )
            for fn, given in [
                (jaxppo.beta, BETA | dict(actions=X)),
                (jaxppo.beta_kl, BETA | REF_BETA),
            ]
            for name in given.keys() - {"alpha"}
            for shape in [(), (2,), (1, 3), (2, 1), (2, 4), (3, 2), (3,)]
        ],
        *[
            (
                fn,
                given | dict(mask=jnp.ones(shape, bool)),
                [f"`mask` has shape {shape}", "pass a mask of shape"],
            )
            for fn, given in [
                (jaxppo.categorical, CHOICE),
                (jaxppo.diagonal_normal, dict.fromkeys([*NORMAL, "actions"], X)),
                (jaxppo.tanh_normal, dict.fromkeys([*NORMAL, "pre_tanh_actions"], X)),
                (jaxppo.beta, BETA | dict(actions=X)),
                (jaxppo.beta_kl, BETA | REF_BETA),
            ]
            for shape in [(), (1,), (2, 3, 5), (3,), (2, 1)]
        ],
        *[
            (
                fn,
                inputs | {name: jnp.ones(())},
                [f"`{name}` has shape ()", "expected ("],
            )
            for fn, name, inputs in [
                (jaxppo.sequence_mean, "per_token", {}),
                (jaxppo.sequence_sum, "per_token", {}),
                (jaxppo.sequence_log_ratio, "log_probs", {"old_log_probs": ROWS[0]}),
                (jaxppo.gae, "rewards", {"values": ROWS[0], "discounts": 0.9}),
                (jaxppo.discounted_returns, "rewards", {"discounts": 0.9}),
                (jaxppo.group_advantages, "rewards", {"group_size": 2}),
                (jaxppo.leave_one_out_advantages, "rewards", {"group_size": 2}),
                (jaxppo.categorical, "logits", {"actions": jnp.ones((), int)}),
                (
                    jaxppo.diagonal_normal,
                    "mean",
                    {"log_std": ROWS[0], "actions": ROWS[0]},
                ),
                (jaxppo.beta, "alpha", {"beta": ROWS[0], "actions": ROWS[0]}),
            ]
        ],
    ],
)
def test_shapes_that_do_not_fit(fn, inputs, fragments):
    said = message(ValueError, fn, **inputs)
    assert said.startswith(f"{fn.__name__}: `")
    for fragment in fragments:
        assert fragment in said


# --- dtypes ---


@each_case
def test_data_are_floating_point_arrays(case):
    inputs = case.inputs(0, np.float32)
    for name in filter(lambda name: is_floating(inputs[name]), inputs):
        for dtype in ("int32", "bool"):
            bad = inputs | {name: np.ones_like(inputs[name], dtype)}
            said = message(TypeError, case, **bad)
            assert said == (
                f"{case.fn.__name__}: `{name}` has dtype {dtype}; expected floating "
                f"point. Pass `{name}.astype(jnp.float32)`."
            )
        said = message(TypeError, case, **inputs | {name: inputs[name].tolist()})
        assert said == (
            f"{case.fn.__name__}: `{name}` is a list; expected an array. "
            f"Pass `jnp.asarray({name})`."
        )


@each_masked_case
def test_masks_are_bool_or_integers(case):
    inputs = case.inputs(0, np.float32)
    said = message(TypeError, case, **inputs | {"mask": np.float32(inputs["mask"])})
    assert said == (
        f"{case.fn.__name__}: `mask` has dtype float32; expected bool or integers, "
        "nonzero counts. Pass `mask.astype(bool)` (or `mask > 0`); fractional weights "
        "are multiplied into the terms instead."
    )
    said = message(TypeError, case, **inputs | {"mask": inputs["mask"].tolist()})
    assert said.startswith(f"{case.fn.__name__}: `mask` is a list; expected an array.")


def test_actions_are_integers():
    said = message(TypeError, jaxppo.categorical, **CHOICE | dict(actions=X))
    assert said == (
        f"categorical: `actions` has dtype {X.dtype}; expected integers. "
        "Pass `actions.astype(jnp.int32)`."
    )


# --- hyper-parameters ---

OUT_OF_RANGE = {
    "(0, 1)": [0, 1, -0.2, 1.5, INF, NAN],
    "(0, 1]": [0, 1.5, -0.2, INF, NAN],
    "[0, 1]": [-0.1, 1.1, INF, NAN],
    "(0, inf)": [0, -0.2, INF, NAN],
    "(0, inf]": [0.0, -0.2, NAN],
    "[0, inf)": [-1e-6, INF, NAN],
    "(1, inf]": [1, 0.5, -3, NAN],
    "[0.6, inf]": [0.59, 0.0, NAN],
    "(-inf, inf)": [INF, -INF, NAN],
    "[-inf, inf]": [NAN],
    "[0, inf]": [-1e-6, NAN],
}
RANGES = {
    jaxppo.masked_variance: dict(ddof="[0, inf)"),
    jaxppo.whiten: dict(ddof="[0, inf)", eps="[0, inf)"),
    jaxppo.log_ratio: dict(max_abs="(0, inf]"),
    jaxppo.sequence_log_ratio: dict(max_abs="(0, inf]"),
    jaxppo.sequence_sum: dict(scale="(-inf, inf)"),
    jaxppo.clipped_surrogate: dict(
        clip_eps="(0, 1)", clip_eps_high="(0, inf)", dual_clip="(1, inf]"
    ),
    jaxppo.clipped_value: dict(clip_eps="(0, inf]"),
    jaxppo.adaptive_kl: dict(
        target="(0, inf)", init_coef="(0, inf)", gain="(0, 1]", max_error="(0, inf)"
    ),
    jaxppo.gae: dict(discounts="[0, 1]", lambda_="[0, 1]"),
    jaxppo.discounted_returns: dict(discounts="[0, 1]"),
    jaxppo.vtrace: dict(
        discounts="[0, 1]", lambda_="[0, 1]", rho_clip="(0, inf]", c_clip="(0, inf]"
    ),
    jaxppo.group_advantages: dict(ddof="[0, inf)", eps="[0, inf)", singleton="[0, 1]"),
    jaxppo.truncated_weights: dict(floor="[0, inf)", cap="[0.6, inf]"),  # from it on
    jaxppo.band_weights: dict(low="[0, inf)", high="[0.6, inf]"),  # from `low` on
    jaxppo.clip_fraction: dict(clip_eps="(0, 1)", clip_eps_high="(0, inf)"),
    jaxppo.clip_fraction_lower: dict(clip_eps="(0, 1)"),
    jaxppo.clip_fraction_upper: dict(clip_eps="(0, inf)"),
    jaxppo.bound_fraction: dict(max_abs="(0, inf]"),
    jaxppo.sequence_token_log_ratio: dict(max_abs="(0, inf]"),
    jaxppo.trajectory_log_ratio: dict(max_abs="(0, inf]"),
    jaxppo.segment_log_ratio: dict(max_abs="(0, inf]"),
    jaxppo.geometric_mean_surrogate: dict(
        clip_eps="(0, inf]", clip_eps_high="(0, inf]"
    ),
    jaxppo.cispo: dict(low="[0, inf)", high="[0.6, inf]"),  # from `low` on
    jaxppo.topr: dict(cap="(0, inf]"),
    jaxppo.soft_gated_surrogate: dict.fromkeys(
        ["temperature", "temperature_negative"], "(0, inf)"
    ),
    jaxppo.vespo_weights: dict.fromkeys(
        ["k", "lambda_", "k_negative", "lambda_negative"], "[0, inf)"
    ),
    jaxppo.shaped_off_policy: dict(gamma="(0, inf)"),
    jaxppo.binary_kl: dict(eps="(0, inf)"),
    jaxppo.trust_region_mask: dict(low="[0, inf]", high="[0, inf]"),
    jaxppo.quadratic_surrogate: dict(clip_eps="(0, inf)"),
    jaxppo.discovered_surrogate: dict(alpha="(0, inf)", beta="(0, inf)"),
    jaxppo.clip_cov_mask: dict(
        fraction="(0, 1]", low="[-inf, inf]", high="[-inf, inf]"
    ),
    jaxppo.kl_cov_mask: dict(fraction="(0, 1]"),
    jaxppo.token_log_probs: dict(softcap="(0, inf)"),
    jaxppo.head_kl: dict(softcap="(0, inf)"),
    jaxppo.bounded_value: dict(clip_eps="(0, inf]"),
    jaxppo.huber_value: dict(delta="(0, inf)"),
    jaxppo.hl_gauss: dict(sigma="(0, inf)"),
    jaxppo.quantile_value: dict(delta="(0, inf)"),
    jaxppo.bounded_kl: dict(max_value="(0, inf]"),
    jaxppo.length_adaptive_lambda: dict(alpha="(0, inf)"),
    jaxppo.leave_one_out_advantages: dict(singleton="[0, 1]"),
    jaxppo.leave_one_out_std: dict(ddof="[0, inf)"),
    jaxppo.pass_at_k_advantages: dict(eps="[0, inf)"),
    jaxppo.optimal_token_baseline: dict(eps="[0, inf)"),
    jaxppo.overlong_penalty: dict(
        max_length="(0, inf)", buffer="(0, inf)", penalty="[0, inf)"
    ),
    jaxppo.top_entropy_mask: dict(fraction="(0, 1]"),
    jaxppo.adaptive_entropy: dict(
        target="(-inf, inf)",
        init_coef="(-inf, inf)",
        step="(0, inf)",
        min_coef="(-inf, inf)",
        max_coef="(-inf, inf)",
    ),
    jaxppo.rejection_mask: dict(low="[-inf, inf]", high="[-inf, inf]"),
    jaxppo.off_policy_sequence_mask: dict(threshold="[-inf, inf]"),
    jaxppo.second_moment_mask: dict(threshold="(0, inf]"),
    jaxppo.correction_metrics: dict(low="[0, inf)", high="(0, inf]"),
    jaxppo.ppo_loss: dict(
        clip_eps="(0, 1)",
        clip_eps_high="(0, inf)",
        dual_clip="(1, inf]",
        value_coef="[0, inf)",
        value_clip_eps="(0, inf]",
        entropy_coef="(-inf, inf)",
        kl_coef="[0, inf)",
    ),
}
ranges = [(fn, *item) for fn, table in RANGES.items() for item in table.items()]
each_number = pytest.mark.parametrize(
    ("fn", "name", "interval"),
    ranges,
    ids=[f"{fn.__name__}-{name}" for fn, name, _ in ranges],
)


def test_every_hyper_parameter_has_a_range():
    for case in ARRAYS:
        assert case.hyper.keys() <= RANGES.get(case.fn, {}).keys()


def call(fn):
    """A good call of a function, and its other arguments."""
    if fn in (jaxppo.adaptive_kl, jaxppo.adaptive_entropy):
        return fn, dict(target=0.1)
    case = next(case for case in ARRAYS if case.fn is fn)
    return case, case.inputs(0, np.float32)


@each_number
def test_numbers_out_of_range(fn, name, interval):
    call_of, inputs = call(fn)
    for value in OUT_OF_RANGE[interval]:
        for kind in (float, np.float64, np.array, jnp.asarray):
            number = kind(value)
            assert message(ValueError, call_of, **inputs | {name: number}) == (
                f"{fn.__name__}: `{name}` = {number}; expected a number in {interval}."
            )


@each_number
def test_numbers_at_the_ends_of_their_range(fn, name, interval):
    call_of, inputs = call(fn)
    low, high = map(float, interval[1:-1].split(","))
    closed = [low] * interval.startswith("[") + [high] * interval.endswith("]")
    for value in closed:
        call_of(**inputs | {name: value})


@each_number
def test_numbers_are_numbers(fn, name, interval):
    call_of, inputs = call(fn)
    said = message(TypeError, call_of, **inputs | {name: "0.2"})
    assert said.startswith(
        f"{fn.__name__}: `{name}` is a str ('0.2'); expected a number"
    )
    if name not in NUMBERS:
        for several in (np.full(7, 0.2), jnp.full((4, 1), 0.2)):
            said = message(ValueError, call_of, **inputs | {name: several})
            assert said.startswith(
                f"{fn.__name__}: `{name}` has shape {several.shape}; expected a number"
            )


@each_number
def test_numbers_are_real(fn, name, interval):
    call_of, inputs = call(fn)
    for kind in (np.complex64(0.2), np.array("a"), np.array(None), jnp.array(0.2j)):
        said = message(TypeError, call_of, **inputs | {name: kind})
        assert said == (
            f"{fn.__name__}: `{name}` has dtype {kind.dtype}; expected a real number."
        )
    said = message(ValueError, call_of, **inputs | {name: 10**400})
    assert said.startswith(f"{fn.__name__}: `{name}` = 1000")


GROUPED = [
    *(jaxppo.group_advantages, jaxppo.leave_one_out_advantages),
    *(jaxppo.leave_one_out_std, jaxppo.pass_at_k_advantages, jaxppo.varied_groups),
    jaxppo.optimal_token_baseline,
]


@pytest.mark.parametrize("fn", GROUPED[:-1])
@pytest.mark.parametrize(
    ("size", "error", "fragment"),
    [
        (0, ValueError, "= 0; expected at least 1"),
        (-2, ValueError, "= -2; expected at least 1"),
        (
            4,
            ValueError,
            "= 4 does not divide the 6 samples of `rewards`, of shape (6,)",
        ),
        (2.0, TypeError, "= 2.0; expected a Python integer"),
        (True, TypeError, "= True; expected a Python integer"),
    ],
)
def test_group_sizes(fn, size, error, fragment):
    said = message(error, functools.partial(fn, group_size=size), rewards=jnp.ones(6))
    assert said.startswith(f"{fn.__name__}: `group_size` {fragment}")


@pytest.mark.parametrize("fn", GROUPED)
def test_groups_are_given_once(fn):
    x = jnp.ones((6, 2)) if fn is jaxppo.optimal_token_baseline else jnp.ones(6)
    data = [x] * (3 if x.ndim > 1 else 1)
    for given in ({}, dict(group_size=2, group_ids=jnp.zeros(6, int))):
        with pytest.raises(
            ValueError, match=f"{fn.__name__}: pass either `group_size`"
        ):
            fn(*data, **given)
    with pytest.raises(
        TypeError, match=r"`group_ids` has dtype float(32|64); expected int"
    ):
        fn(*data, group_ids=jnp.zeros(6))


# --- arguments that need each other ---


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "fragments"),
    [
        (
            jaxppo.gae,
            STEPS | dict(bootstrap_value=ROWS, next_values=X),
            ValueError,
            ["both `bootstrap_value` and `next_values`", "pass `next_values` alone"],
        ),
        (
            jaxppo.vtrace,
            STEPS | dict(log_ratio=X, bootstrap_value=ROWS, next_values=X),
            ValueError,
            ["both `bootstrap_value` and `next_values`", "pass `next_values` alone"],
        ),
        *[
            (
                jaxppo.ppo_loss,
                LOSS | {name: -1.0},
                ValueError,
                [f"`{name}` = -1.0; expected a number in"],
            )
            for name in ("value_coef", "clip_eps")
        ],
        (
            jaxppo.ppo_loss,
            LOSS | dict(old_values=ROWS),
            ValueError,
            ["`old_values` has shape (2,)"],
        ),
        (
            jaxppo.ppo_loss,
            LOSS | dict(value_clip_eps=0.0),
            ValueError,
            ["`value_clip_eps` = 0.0; expected a number in (0, inf]"],
        ),
        *[
            (fn, dict(x=X, axis=axis), error, [f"`axis` = {axis!r}", *more])
            for fn in (jaxppo.masked_sum, jaxppo.masked_mean, jaxppo.masked_max)
            for axis, error, *more in [
                (2, ValueError, "`x` has shape (2, 3)"),
                (-3, ValueError, "`x` has shape (2, 3)"),
                (1.0, TypeError, "expected an integer"),
                ("time", TypeError, "expected an integer"),
                (True, TypeError, "expected an integer"),
            ]
        ],
        (
            jaxppo.unbiased_gradient_kl,
            dict(log_ratio=X, estimator="k3"),
            TypeError,
            ["`estimator` is 'k3'; expected a function, such as "],
        ),
        (jaxppo.ppo_loss, LOSS | dict(values=X), ValueError, ["`values`", "`returns`"]),
        (
            jaxppo.ppo_loss,
            LOSS | dict(returns=X),
            ValueError,
            ["`values`", "`returns`"],
        ),
        *[
            (
                jaxppo.ppo_loss,
                LOSS | dict(values=X, returns=X) | {name: value},
                ValueError,
                [f"`{name}` = ", "has no effect", f"pass `{array}`"],
            )
            for name, array in [
                ("value_clip_eps", "old_values"),
                ("entropy_coef", "entropy"),
                ("kl_coef", "ref_log_probs"),
            ]
            for value in (0.1, np.float32(0.1))
        ],
        (
            jaxppo.ppo_loss,
            LOSS | dict(old_values=X, value_clip_eps=0.2),
            ValueError,
            ["`value_clip_eps` = 0.2", "has no effect", "pass `values`"],
        ),
    ],
)
def test_arguments_that_need_each_other(fn, inputs, error, fragments):
    said = message(error, fn, **inputs)
    assert said.startswith(f"{fn.__name__}: ")
    for fragment in fragments:
        assert fragment in said


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            dict(aggregate="mean"),
            "`aggregate` is 'mean'; expected a function, such as ",
        ),
        (
            dict(aggregate=lambda x, mask: 0.0),
            "`aggregate` returned a float; expected a `jaxppo.Mean`",
        ),
        (dict(ref_log_probs=X, kl="k3"), "`kl` is 'k3'; expected a function, such as "),
        (
            dict(ref_log_probs=X, kl=jnp.sum),
            "`kl` has shape (), but `log_probs` has shape (2, 3)",
        ),
    ],
)
def test_functions_that_are_passed(inputs, expected):
    error = ValueError if "shape" in expected else TypeError
    said = message(error, functools.partial(jaxppo.ppo_loss, **LOSS), **inputs)
    assert said.startswith(f"ppo_loss: {expected}")


def test_a_traced_coefficient_needs_its_array():
    for name in ("entropy_coef", "kl_coef", "value_clip_eps"):
        with pytest.raises(ValueError, match=f"ppo_loss: `{name}` = .*has no effect"):
            jax.jit(lambda x, name=name: jaxppo.ppo_loss(**LOSS, **{name: x}))(0.0)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_misspelt_arguments_are_refused(name):
    with pytest.raises(TypeError, match="clip_esp"):
        PUBLIC[name](clip_esp=0.2)


# --- whole messages ---


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "expected"),
    [
        (
            jaxppo.clipped_surrogate,
            TERM | dict(advantages=ROWS),
            ValueError,
            "clipped_surrogate: `advantages` has shape (2,), but `log_ratio` has shape "
            "(2, 3); pass shape (2, 3) or (2, 1) (did you mean "
            "`advantages[..., None]`?).",
        ),
        (
            jaxppo.ppo_loss,
            LOSS | dict(old_log_probs=jnp.ones((2, 1))),
            ValueError,
            "ppo_loss: `old_log_probs` has shape (2, 1), but `log_probs` has shape "
            "(2, 3); pass shape (2, 3) (did you mean "
            "`jnp.broadcast_to(old_log_probs, (2, 3))`?).",
        ),
        (
            jaxppo.token_mean,
            dict(per_token=X, mask=jnp.ones((3, 2), bool)),
            ValueError,
            "token_mean: `mask` has shape (3, 2), but `per_token` has shape (2, 3); "
            "pass a mask of shape (2, 3) (did you mean `mask.T`?).",
        ),
        (
            jaxppo.squared_value,
            dict(values=X, returns=ROWS),
            ValueError,
            "squared_value: `returns` has shape (2,), but `values` has shape (2, 3); "
            "pass shape (2, 3) (did you mean "
            "`jnp.broadcast_to(returns[..., None], (2, 3))`?).",
        ),
        (
            jaxppo.clipped_value,
            dict(values=X, old_values=X, returns=jnp.ones((2, 4))),
            ValueError,
            "clipped_value: `returns` has shape (2, 4), but `values` has shape (2, 3); "
            "pass shape (2, 3).",
        ),
        (
            jaxppo.sequence_mean,
            dict(per_token=jnp.ones(())),
            ValueError,
            "sequence_mean: `per_token` has shape (); expected (*batch, time). For one "
            "step pass `per_token[None]`.",
        ),
        (
            jaxppo.ppo_loss,
            LOSS | dict(kl_coef=0.1),
            ValueError,
            "ppo_loss: `kl_coef` = 0.1 has no effect without `ref_log_probs`; pass "
            "`ref_log_probs`.",
        ),
        (
            jaxppo.clip_fraction,
            dict(log_ratio=X, clip_eps=np.full(3, 0.2)),
            ValueError,
            "clip_fraction: `clip_eps` has shape (3,); expected a number. To try "
            "several, `jax.vmap` over it.",
        ),
    ],
)
def test_whole_message(fn, inputs, error, expected):
    assert message(error, fn, **inputs) == expected


ONE = jnp.ones  # of a shape
NO_WORDS = ONE((2, 0)), jnp.zeros(2, int)


@pytest.mark.parametrize(
    ("fn", "data", "fragment"),
    [
        (jaxppo.expected_value, (ONE(2), ONE(3)), "`support` has shape (3,), but"),
        (jaxppo.expected_value, (ONE(()), ONE(3)), "`support` has shape (3,), but"),
        (jaxppo.quantile_value, (ONE((2, 5)), ONE(3)), "`returns` has shape (3,), but"),
        (jaxppo.quantile_value, (ONE(()), ONE(())), "`returns` has shape (), but"),
        (jaxppo.two_hot, (ONE(2), ONE(1)), "`support` has shape (1,); expected (k,)"),
        (jaxppo.two_hot, (ONE(2), ONE((2, 2))), "`support` has shape (2, 2); expected"),
        (jaxppo.categorical_value, (ONE(()), ONE(())), "`logits` has shape (); exp"),
        (jaxppo.prompt_mean, (ONE(4),), "`per_token` has shape (4,); expected"),
        (jaxppo.prompt_mean, (ONE((3, 2)),), "`per_token` has shape (3, 2); expected"),
        (jaxppo.optimal_token_baseline, (ONE(4),) * 3, "`returns` has shape (4,); exp"),
        (jaxppo.selective_log_softmax, NO_WORDS, "`logits` has shape (2, 0): no words"),
        (
            jaxppo.selective_log_softmax,
            (ONE((2, 3)), jnp.zeros(3, int)),
            "`targets` has shape (3,), but `logits` has shape (2, 3); pass shape (2,)",
        ),
    ],
)
def test_shapes_of_one_function(fn, data, fragment):
    grouped = (jaxppo.prompt_mean, jaxppo.optimal_token_baseline)
    given = dict(group_size=2) if fn in grouped else {}
    with pytest.raises(ValueError) as info:
        fn(*data, **given)
    assert str(info.value).startswith(f"{fn.__name__}: {fragment}")


def test_tokens_are_taken_from_a_mask():
    with pytest.raises(
        TypeError, match="rejection_mask: `mask` is None; pass the mask"
    ):
        jaxppo.rejection_mask(X, None, high=1.0)


def test_means_are_not_added_to_numbers():
    mean = jaxppo.Mean(jnp.ones(()), jnp.ones(()))
    for wrong in (lambda: mean + 3.0, lambda: 3.0 + mean, lambda: mean * mean):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong()


@pytest.mark.parametrize(
    ("call", "error", "fragments"),
    [
        (
            lambda x: jaxppo.band_weights(x, low=3.0, high=2.0),
            ValueError,
            ["band_weights", "`high` = 2.0", "[3.0, inf]"],
        ),
        *[
            (
                lambda x, points=points, fn=fn, more=more: fn(
                    x, jnp.array(points), **more
                ),
                ValueError,
                [f"{fn.__name__}: `{name}` = ", "expected increasing numbers"],
            )
            for fn, name, more in [
                (jaxppo.two_hot, "support", {}),
                (jaxppo.hl_gauss, "edges", {"sigma": 0.5}),
            ]
            for points in ([0.0, 0.0, 1.0], [1.0, 0.0], [0.0, NAN, 1.0])
        ],
        (  # a bound may be anything that is a number, to be compared with
            lambda x: jaxppo.truncated_weights(x, floor=True, cap=0.5),
            ValueError,
            ["truncated_weights", "`cap` = 0.5", "[1, inf]"],
        ),
        (
            lambda x: jaxppo.categorical(x[0, :0], jnp.array(0)),
            ValueError,
            ["categorical: `logits` has shape (0,)", "the size is not 0"],
        ),
        (
            lambda x: jaxppo.rejection_mask(x[0, :1], jnp.array(True), high=1.0),
            ValueError,
            ["rejection_mask: `statistic` has shape (1,)", "pass shape ()."],
        ),
        *[
            (call, TypeError, [f"{fn}: `targets` is a NoneType"])
            for fn, call in {
                "token_log_probs": lambda x: jaxppo.token_log_probs(x, x, None),
                "linear_policy_loss": lambda x: jaxppo.linear_policy_loss(
                    x, x, x, lambda head, b: (head, {}), targets=None
                ),
            }.items()
        ],
        (
            lambda x: jaxppo.length_adaptive_lambda(None),
            TypeError,
            ["length_adaptive_lambda", "`mask` is None"],
        ),
        (
            lambda x: jaxppo.accumulate_grads("loss", x, {"x": x}),
            TypeError,
            ["accumulate_grads", "`loss_fn` is 'loss'; expected a function"],
        ),
        (
            lambda x: jaxppo.check_progress(x),
            TypeError,
            ["check_progress", "`state` is a ", "TrainState"],
        ),
        (
            lambda x: jaxppo.ppo_loss(x, x, x, ref_log_probs=x, kl=jnp.sum),
            ValueError,
            ["ppo_loss", "`kl`", "()", "(1, 3)"],
        ),
    ],
)
def test_what_else_would_go_wrong_silently(call, error, fragments):
    with pytest.raises(error) as info:
        call(jnp.zeros((1, 3)))
    for fragment in fragments:
        assert fragment in str(info.value)


def test_a_bound_may_be_a_float32():
    """Its digits are those of a float, not those that NumPy prints."""
    least = np.float32(0.7)
    jaxppo.band_weights(jnp.zeros((1, 2)), low=least, high=least)
    jaxppo.truncated_weights(jnp.zeros((1, 2)), floor=least, cap=least)


def test_a_mask_of_rows_is_shown_how_to_be_one_of_tokens():
    said = message(
        ValueError,
        jaxppo.token_mean,
        **dict(per_token=jnp.ones((2, 3)), mask=jnp.ones(2, bool)),
    )
    assert "`jnp.broadcast_to(mask[..., None], (2, 3))`" in said
