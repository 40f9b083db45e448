"""The interactive page: its numbers are the library's, in node and in a browser."""

import functools
import json
import math
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

STATIC = Path(__file__).parents[1] / "docs/_static"
TERMS = STATIC / "surrogates.js"
NODE = shutil.which("node")


# --- what evaluates JavaScript ---


def in_node(expression: str, argument=None):
    """The value of an expression of `oneToken` and `argument`."""
    script = f"""
    require({json.dumps(str(TERMS))});
    const argument = JSON.parse(require("fs").readFileSync(0, "utf8"));
    console.log(JSON.stringify({expression}));
    """
    command = [NODE, "--use_strict", "-e", script]
    given = dict(input=json.dumps(argument), capture_output=True, text=True)
    return json.loads(subprocess.run(command, **given, check=True).stdout)


@pytest.fixture(params=["node"])
def engine(request):
    if not NODE:
        pytest.skip("no node on this machine")
    return in_node


# --- numbers ---

# Off every bound, in any dtype: bounds are multiples of 0.05, or far from these.
RATIOS = 0.0137 + 0.05 * np.arange(80)
ADVANTAGES = [-2.5, -1.0, 0.0, 0.7, 3.0]
HYPER = {
    "clipped_surrogate": [
        {},
        dict(clip_eps=0.3, clip_eps_high=0.1),
        dict(clip_eps=0.1, dual_clip=1.5),
        dict(clip_eps=0.5, clip_eps_high=1.5, dual_clip=2.0),
    ],
    "geometric_mean_surrogate": [{}, dict(clip_eps=0.35, clip_eps_high=0.9)],
    "unclipped_surrogate": [{}],
    "policy_gradient": [{}, dict(old_prob=0.05)],
    "cispo": [{}, dict(low=0.8, high=1.2, old_prob=0.1)],
    "topr": [{}, dict(cap=0.5), dict(cap=2.0, old_prob=0.01)],
    "soft_gated_surrogate": [{}, dict(temperature=3.0, temperature_negative=0.5)],
    "vespo_weights": [
        {},
        dict(k=0.5, lambda_=1.0, k_negative=0.0, lambda_negative=4.0),
    ],
    "shaped_off_policy": [{}, dict(gamma=0.5, old_prob=0.05)],
    "binary_tv": [{}, dict(low=0.1, high=0.35, old_prob=0.24), dict(low=0.0)],
    "binary_kl": [{}, dict(low=0.02, high=0.1, old_prob=0.24), dict(low=0.0)],
    "quadratic_surrogate": [{}, dict(clip_eps=1.5)],
    "discovered_surrogate": [{}, dict(alpha=0.4, beta=2.0)],
    "kl_k2": [{}, dict(coef=0.0), dict(coef=2.0)],
    "kl_k3": [{}, dict(coef=0.0), dict(coef=2.0)],
}


def run(code: str) -> dict:
    """The names of a copied piece of Python, and its last line's value as `shown`."""
    lines = code.splitlines()
    names = {}
    exec("\n".join([*lines[:-1], f"shown = {lines[-1]}"]), names)
    return names


@functools.cache
def library(code: str, x64: bool) -> tuple[np.ndarray, np.ndarray]:
    """Loss and pull for all ratios and advantages, by the code that a reader copies."""
    with jax.enable_x64(x64):
        names = run(code)

        def loss(x, a):
            names["A"] = a
            return names["loss"](x)

        dtype = jnp.float64 if x64 else jnp.float32
        x, a = np.meshgrid(np.log(RATIOS), ADVANTAGES)
        x, a = (jnp.asarray(v.reshape(-1, 1), dtype) for v in (x, a))
        value, slope = jax.vmap(jax.value_and_grad(loss))(x, a)
        return np.asarray(value), -np.asarray(slope)[:, 0]


def test_every_mode_is_tested(engine):
    assert set(engine("Object.keys(oneToken.MODES)")) == set(HYPER)


@pytest.mark.parametrize("mode", HYPER)
def test_numbers_are_the_librarys(engine, mode):
    for hyper in HYPER[mode]:
        state = engine("oneToken.start(argument)", mode) | hyper
        states = [
            state | {"ratio": r, "advantages": a} for a in ADVANTAGES for r in RATIOS
        ]
        found = engine("argument.map(oneToken.evaluate)", states)
        code = engine("oneToken.code(argument)", state)
        for x64, near in [(True, 1e-11), (False, 2e-5)]:
            loss, pull = library(code, x64)
            for key, wanted in [("loss", loss), ("pull", pull)]:
                got = np.array([x[key] for x in found])
                np.testing.assert_allclose(got, wanted, rtol=near, atol=near)


def log_of(ratio: float) -> jax.Array:
    """A log-ratio whose exponential is this ratio to the last bit, in float64."""
    x = float(np.log(ratio))
    for steps in range(-8, 9):
        near = jnp.array([x + steps * math.ulp(x)])
        if float(jnp.exp(near)[0]) == ratio:
            return near
    raise AssertionError(f"no logarithm of {ratio}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("mode", "hyper", "advantage", "bound"),
    [
        ("clipped_surrogate", {}, 1.0, 1.2),
        ("clipped_surrogate", dict(clip_eps_high=0.28), 1.0, 1.28),
        ("clipped_surrogate", {}, -1.0, 0.8),
        ("clipped_surrogate", dict(dual_clip=1.5), -1.0, 1.5),
        ("clipped_surrogate", {}, 0.0, 1.2),
        ("cispo", dict(low=0.8), 1.0, 0.8),
        ("cispo", dict(high=1.25), -1.0, 1.25),
        ("topr", dict(cap=0.75), -1.0, 0.75),
        ("discovered_surrogate", {}, 1.0, 1.0),
        ("discovered_surrogate", {}, -1.0, 1.0),
        ("binary_tv", {}, -1.0, 1.0),
        ("kl_k3", {}, 1.0, 1.0),
    ],
)
def test_at_a_bound_and_beside_it(engine, mode, hyper, advantage, bound):
    """To the last bit at it: the library's bounds are closed, and so must these be."""
    state = engine("oneToken.start(argument)", mode) | hyper
    near = [bound * (1 - 1e-9), bound, bound * (1 + 1e-9)]
    states = [state | {"ratio": r, "advantages": advantage} for r in near]
    found = engine("argument.map(oneToken.evaluate)", states)
    for ratio, s, got in zip(near, states, found, strict=True):
        names = run(engine("oneToken.code(argument)", s))
        x = log_of(ratio)
        loss, slope = jax.value_and_grad(names["loss"])(x)
        assert got["loss"] == pytest.approx(float(loss), rel=1e-12)
        assert got["pull"] == pytest.approx(-float(slope[0]), rel=1e-12, abs=1e-12)


def test_code_gives_the_number_shown(engine):
    """As it is copied, a line at a time, in float32."""
    for mode in HYPER:
        state = engine("oneToken.start(argument)", mode)
        state |= {"ratio": 0.55, "advantages": -1.5}
        got = engine("oneToken.evaluate(argument)", state)
        loss, pull = run(engine("oneToken.code(argument)", state))["shown"]
        assert got["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert got["pull"] == pytest.approx(float(pull[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "at", "branch"),
    [
        ("clipped_surrogate", dict(ratio=1.3), "clipped above"),
        ("clipped_surrogate", dict(ratio=1.2), "unclipped"),
        ("clipped_surrogate", dict(ratio=0.5), "unclipped"),
        ("clipped_surrogate", dict(ratio=0.5, advantages=-1), "clipped below"),
        ("clipped_surrogate", dict(ratio=3.5, advantages=-1), "unclipped"),
        (
            "clipped_surrogate",
            dict(ratio=3.5, advantages=-1, dual_clip=3),
            "dual-clipped",
        ),
        ("clipped_surrogate", dict(ratio=3.5, advantages=0), "no advantage"),
        ("cispo", dict(ratio=3), "weight held from above"),
        ("topr", dict(ratio=0.5, advantages=-1), "weight = ratio"),
        ("binary_tv", dict(ratio=2.1), "too far up"),
        ("binary_tv", dict(ratio=2.1, advantages=-1), "trusted"),
        ("quadratic_surrogate", dict(ratio=1.3), "past the optimum, pulled back"),
        ("discovered_surrogate", dict(ratio=0.5), "no drift"),
        ("kl_k2", dict(ratio=0.3, advantages=-1), "pulled back"),
    ],
)
def test_branches(engine, mode, at, branch):
    state = engine("oneToken.start(argument)", mode) | at
    assert engine("oneToken.evaluate(argument)", state)["branch"] == branch
