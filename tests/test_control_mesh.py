"""Seeds and environments on a mesh: the run of one device, and each device's share."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import jax
import numpy as np
import pytest
from common import devices
from control import environments, runs, sharding
from processes import kept_to, pair, rows, wait_for

import jaxppo

pytestmark = pytest.mark.usefixtures("relaxed")
STEPS = [256, 512, 768]  # after an update each
SMALL = runs.Options(
    total_steps=STEPS[-1],
    num_envs=8,
    num_steps=32,
    num_epochs=2,
    num_minibatches=2,
    microbatch=32,
    gamma=0.98,
    learning_rate=1e-3,
    normalise_obs=True,
    normalise_rewards=True,
    seeds=2,
    num_evals=3,
)
MESH = "seeds=2,envs=4"
RTOL = 1e-4
"""Devices add up in another order: 8 roundings of 6e-8, then 12 steps of Adam.

Those divide by a gradient's size, which may itself be a small difference of large
numbers. Whatever were left out, counted twice or taken of a part would be off by 0.1.
"""


def trained(mesh: str):
    """Three updates, an evaluation after each, and what a device computes for one."""
    mesh = devices.mesh(mesh, sharding.AXES)
    returns, metrics = [], []
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        init, advance, evaluate, _ = runs._compiled(environments.cartpole(), SMALL, 1)
        eval_key, train_key = jax.random.split(jax.random.key(SMALL.seed))
        run = init(jax.random.split(train_key, SMALL.seeds))
        advance = advance.lower(run).compile()
        for step in STEPS:
            run, found = advance(run)
            jaxppo.check_progress(run.train)
            returns.append(evaluate(run, jax.random.fold_in(eval_key, step)))
            metrics.append(jaxppo.finalize(found))
    return run, metrics, returns, advance.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def both():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return trained(MESH), trained("")


def assert_same(metrics, expected):
    assert metrics.keys() == expected.keys()
    for name, x in metrics.items():
        np.testing.assert_allclose(x, expected[name], RTOL, 1e-6, err_msg=name)


def test_a_mesh_learns_what_one_device_learns(both):
    (run, metrics, returns, _), (alone, own, expected, _) = both
    assert np.std(expected) > 1
    np.testing.assert_array_equal(returns, expected)  # episodes are counted in steps
    for found, wanted in zip(metrics, own, strict=True):
        assert_same(found, wanted)
    np.testing.assert_array_equal(*(jax.random.key_data(x.key) for x in (run, alone)))
    for x, y in zip(*map(jax.tree.leaves, (run[:-1], alone[:-1])), strict=True):
        np.testing.assert_allclose(x, y, rtol=RTOL, atol=1e-5)


def test_each_device_has_its_share(both):
    """Of what is held and of what is done: an eighth, and what is whole by its nature.

    That is the shuffle, a number a row, and metrics: half as much again is far from
    the four eighths of it all if every device took the whole of a seed's gradient.
    """
    (run, *_, flops), (*_, alone) = both
    assert alone / 8 < flops < 1.5 * alone / 8
    shards = lambda tree: [
        x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(tree)
    ]
    assert {x[:2] for x in shards(run.playing)} == {(1, 2)}
    assert {x[0] for x in shards(run.train)} == {1}


REFUSED = {
    "axis": (dict(mesh="rows=8"), "expected something like seeds=2,envs=4"),
    "devices": (dict(mesh="seeds=4"), "has 4 devices, and there are 8. Fix"),
    "seeds": (dict(mesh="seeds=8"), "--seeds 2 on a mesh of seeds=8.*--seeds 8"),
    "envs": (dict(mesh="envs=8", num_envs=12), "--num-envs 12 .* --num-envs 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, case):
    changes, message = REFUSED[case]
    o = dataclasses.replace(SMALL, out=tmp_path / "run", **changes)
    with pytest.raises(ValueError, match=message):
        runs.train("short", environments.cartpole(), o, goal=1)
    assert not (tmp_path / "run").exists()


def test_two_processes_are_one_device(environment, tmp_path, both):
    """Both are killed after an update, and go on with the mesh the other way round.

    First the seeds are spread over both, then the environments; neither has all of a
    checkpoint.
    """
    own = {"entropy_coef": SMALL.entropy_coef, "gae_lambda": SMALL.gae_lambda}
    usual = vars(runs.Options())
    given = {k: v for k, v in vars(SMALL).items() if v != usual[k]} | own
    flag = lambda name: f"--{name.replace('_', '-')}"
    flags = [flag(k) if v is True else f"{flag(k)}={v}" for k, v in given.items()]

    two = partial(pair, environment, "cartpole")
    out = tmp_path / "run"
    first = two(*flags, "--mesh=seeds=2", "--out", out)
    with kept_to(first):
        wait_for(out, 2, first)
    assert (out / "checkpoints" / str(STEPS[0])).exists()  # the row after it is there
    second = two("--mesh=envs=2", "--resume", out)
    with ThreadPoolExecutor(2) as read, kept_to(second):
        said = list(read.map(lambda p: p.communicate(timeout=900)[0], second))
    assert [process.returncode for process in second] == [0, 0], said
    assert "seed 1: mean return" in said[0] and "mean return" not in said[1]
    assert (out / "curve.png").exists()
    _, (_, metrics, returns, _) = both
    for row, wanted, evals, step in zip(
        rows(out), metrics, returns, STEPS, strict=True
    ):
        assert row["step"] == step
        np.testing.assert_array_equal(row["eval_return"], np.mean(evals, 1))
        assert_same({name: row[name] for name in wanted}, wanted)
