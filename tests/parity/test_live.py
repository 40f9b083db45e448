"""The same tables, against the systems themselves, on inputs drawn at every run.

Needs torch and the systems: `python3 run.py test-live` installs and runs it.
JAXPPO_LIVE_SEED repeats a run, whose seed is in the names of its tests.
"""

import functools
import importlib
import importlib.util
import os
import re
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo
from parity import comparison
from parity.live import inputs, systems

NEEDED = "torch verl openrlhf trl liger_kernel areal torchrl tunix rlax".split()
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    reason = f"not installed: {', '.join(MISSING)}; `python3 run.py test-live` does"
    pytest.skip(reason, allow_module_level=True)

# Another one for each run, but the same one for all of a run's workers.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
SEED = int(os.environ.get("JAXPPO_LIVE_SEED", int(RUN[:7], 16)))
SHAPES = [(8, 11, 4), (12, 16, 3), (6, 40, 2)]  # rows, time, group size
RUNS = [(SEED + i, *shape) for i, shape in enumerate(SHAPES)]
NAMES = [
    name
    for name in [*comparison.LOSSES, *comparison.VALUES]
    if name.split("/")[0]
    in ("verl", "openrlhf", "trl", "liger", "areal", "torchrl", "tunix", "rlax")
]


@functools.cache
def reference(run):
    """What the systems compute, in float32."""
    return systems.reference(inputs.draw(*run))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_it_is_what_the_system_computes(run, name):
    live = reference(run)
    assert name in live["outputs"], live["skipped"].get(name)
    b = comparison.batch(live["inputs"])
    comparison.compare(name, live["outputs"][name], b)


@pytest.mark.usefixtures("relaxed")
def test_rlaxs_vtrace_advantages():
    """Of one sequence: of these no output was recorded."""
    rlax = importlib.import_module("rlax")
    b = comparison.batch(inputs.draw(*RUNS[0]))
    time = b.time
    args = b.values[0], jnp.append(b.values[0, 1:], 0.3), b.token_rewards[0]
    args += (jnp.full(time, 0.9).at[time // 2].set(0),)
    x, lambda_ = b.logp[0] - b.old[0], jnp.linspace(0.5, 1, time)
    theirs = rlax.vtrace_td_error_and_advantage(*args, jnp.exp(x), lambda_, 1.2, 1.1)
    ours = jaxppo.recipes.rlax.vtrace_td_error_and_advantage(
        *args, x, lambda_=lambda_, clip_rho_threshold=1.2, clip_pg_rho_threshold=1.1
    )
    expected = theirs.errors, theirs.pg_advantage, theirs.q_estimate
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, tuple(ours), expected)


# --- in bfloat16 ---

# Five roundings of 2^-8. Whether a token is kept may hang on one, so these are out:
CHOICES = re.compile(
    "rollout_rs|_1.25|_1.2$|mask|icepop|dppo|cov|entropy|OPSM|m2po|decoup"
)
ROUNDED = [name for name in NAMES if not CHOICES.search(name)]


@functools.cache
def rounded():
    """What the systems compute of bfloat16 inputs, in bfloat16."""
    return systems.reference(inputs.draw(*RUNS[0]), "bfloat16")


@pytest.mark.parametrize("name", ROUNDED)
def test_it_is_what_the_system_computes_in_bfloat16(name):
    """Ours is in float32 from the door on: it differs by the system's rounding only."""
    live = rounded()
    if name in live["skipped"]:
        pytest.skip(live["skipped"][name])
    expected = live["outputs"][name]
    b = comparison.batch(live["inputs"])
    # Estimators add up over time, with a rounding at each step.
    bound = 2**-8 * b.time if name in comparison.VALUES else 2e-2
    close = functools.partial(np.isclose, rtol=bound, atol=bound)
    if name in comparison.VALUES:
        value, _ = comparison.loss_and_metrics(comparison.VALUES[name](b))
        off = ~close(value, expected["value"])
        assert np.sum(off & b.mask if off.shape == b.mask.shape else off) == 0
    else:
        value, grad, _ = comparison.loss_and_gradient(name, b)
        assert close(value, expected["value"])
        off = ~close(grad, expected["grad"]) & b.mask
        assert np.sum(off) <= 2, "more than what lies at the edge of a clip"


# --- it can fail ---


@pytest.mark.parametrize(
    ("name", "term", "broken"),
    [
        ("verl/vanilla/token-mean", "clipped_surrogate", lambda loss: loss * 1.001),
        ("trl/sapo", "soft_gated_surrogate", jnp.abs),
        ("verl/kl_penalty/mse", "kl_k2", jax.lax.stop_gradient),
        ("tunix/gae", "gae", lambda out: out._replace(advantages=-out.advantages)),
    ],
)
def test_a_broken_term_is_caught(name, term, broken, monkeypatch):
    """A thousandth too much, a sign, a gradient: the recipes that use it are off."""
    live = reference(RUNS[0])
    b = comparison.batch(live["inputs"])
    good = getattr(jaxppo, term)
    monkeypatch.setattr(jaxppo, term, lambda *a, **k: broken(good(*a, **k)))
    with pytest.raises(AssertionError):
        comparison.compare(name, live["outputs"][name], b)
