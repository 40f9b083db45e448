"""A run on a mesh is the run on one device: losses, parameters, and its checkpoints."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest
from common import folders
from common.checkpoints import Checkpoints
from llm import runs, tiny, weights
from processes import kept_to, pair, rows, wait_for
from safetensors.numpy import load_file

pytestmark = pytest.mark.usefixtures("relaxed")
RATE = 1e-4
SMALL = runs.Options(
    model="tiny",
    task="digits",
    num_updates=3,
    prompts_per_update=8,
    group_size=4,
    eval_prompts=8,
    learning_rate=RATE,
    critic_learning_rate=RATE,
    save_every=1,
    seed=1,  # each minibatch has rewards: a critic's first gradient is not noise alone
)
VARIANTS = {
    "grpo": SMALL,
    "ppo": dataclasses.replace(SMALL, algorithm="ppo", kl_coef=0.1),
    "lora": dataclasses.replace(SMALL, lora_rank=4, kl_coef=0.1),
    "last layer": dataclasses.replace(
        SMALL,
        **dict(train_layers=1, num_minibatches=1, num_microbatches=2),
        **dict(temperature=0.7, top_k=50),
    ),
    "one step": dataclasses.replace(SMALL, num_minibatches=1, temperature=0.7),
}
ONE = ""
ALL_AXES = "data=2,fsdp=2,tensor=2"


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The folder of a run without a mesh, made when it is first asked for."""
    found = {}

    def of(variant):
        if variant not in found:
            found[variant] = tmp_path_factory.mktemp("one") / "run"
            runs.train(dataclasses.replace(VARIANTS[variant], out=found[variant]))
        return found[variant]

    return of


def assert_same_run(out, expected):
    """Losses and parameters to 1e-5, of three updates that change them by far more.

    The devices' sums are taken in another order: a loss is a mean of terms of size 1,
    so 1e-5 is 100 roundings of it. Adam moves a parameter by RATE an update, however
    small its gradient: 1e-5 is 1 part in 30 of the way of those whose gradient is
    nearly 0, and little beside that of the others.
    """
    ours, theirs = rows(out), rows(expected)
    assert len({row["length"] for row in theirs}) > 1  # completions are ragged
    assert [row["update"] for row in ours] == [1, 2, 3]
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            # Norms, lengths and extremes are not means of terms of size 1.
            rtol = 0 if "loss" in name else 1e-4
            np.testing.assert_allclose(
                row[name], other[name], rtol=rtol, atol=1e-5, err_msg=name
            )
    ours, theirs = (load_file(x / "policy/model.safetensors") for x in (out, expected))
    assert ours.keys() == theirs.keys()
    moved = 0
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, rtol=0, err_msg=name)
        moved = max(moved, np.max(np.abs(value - tiny.source().tensor(name))))
    assert moved > 2 * RATE


CASES = {
    "auto, then fewer axes": ("ppo", "auto", [ALL_AXES, "fsdp=4,tensor=2"]),
    "explicit, then one device": ("grpo", "explicit", [ALL_AXES, ONE]),
    "one device, then explicit": ("lora", "explicit", [ONE, "data=4,tensor=2"]),
    "last layer": ("last layer", "auto", [ALL_AXES]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mesh_is_one_device(tmp_path, monkeypatch, one_device, case):
    variant, axes, (mesh, *later) = case
    out = tmp_path / "run"
    on = lambda mesh, **where: dataclasses.replace(
        VARIANTS[variant], mesh=mesh, axes=axes, **where
    )
    kept = Checkpoints.save

    def save(self, step, state):
        if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1:
            large = [x for x in jax.tree.leaves(state) if x.ndim > 1 and x.size > 300]
            assert large and not any(x.is_fully_replicated for x in large)
        kept(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    if later:
        with monkeypatch.context() as patch:
            patch.setattr(folders, "append", power_cut)
            with pytest.raises(KeyboardInterrupt):
                runs.train(on(mesh, out=out))
        runs.train(on(*later, resume=out))
    else:
        runs.train(on(mesh, out=out))
    assert_same_run(out, one_device(variant))


def test_one_step_is_on_policy(one_device):
    """The trainer's log-probs are of the policy that sampled, its temperature included.

    So the ratios of the only step are 1, up to rounding: 1e-4, squared.
    """
    for row in rows(one_device("one step")):
        assert row["approx_kl"] < 1e-8 and row["clip_fraction"] == 0


append = folders.append


def power_cut(out, row):
    """What was learned since the last checkpoint is gone."""
    append(out, row)
    if row["update"] == 2:
        raise KeyboardInterrupt


def test_two_processes_are_one_device(environment, tmp_path, one_device):
    """Both are killed after an update, started again, and the run is the same.

    Parameters are spread over both, so that neither has all of a checkpoint.
    """
    out = tmp_path / "run"
    given = {k: v for k, v in vars(SMALL).items() if v != getattr(runs.Options(), k)}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    options += ["--mesh=fsdp=4,tensor=2"]
    four = "--xla_force_host_platform_device_count=4"
    few_threads = "--xla_cpu_multi_thread_eigen=false"  # as in conftest.py
    env = environment | {"XLA_FLAGS": f"{four} {few_threads}"}

    two = partial(pair, env, "train_llm", *options)
    first = two("--out", out)
    with kept_to(first):
        wait_for(out, 2, first)
    assert (out / "checkpoints" / "1").exists()  # the row after it is there
    second = two("--resume", out)
    with ThreadPoolExecutor(2) as read, kept_to(second):
        said = list(read.map(lambda p: p.communicate(timeout=1800)[0], second))
    assert [process.returncode for process in second] == [0, 0], said
    assert "policy" in said[0] and "policy" not in said[1]
    assert "before training" not in said[0]  # it went on, from both's checkpoint
    assert_same_run(out, one_device("grpo"))
    after = json.loads((out / "after.json").read_text())
    assert len(after["samples"]) == 8
    weights.read(out / "policy")
