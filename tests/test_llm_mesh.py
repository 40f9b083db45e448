"""A run on a mesh is the run on one device: losses, parameters, and its checkpoints."""

import dataclasses
import json
import socket

import numpy as np
import pytest
from common import folders
from llm import runs, tiny, weights
from processes import lines, rows, start
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
    save_every=1,
)
VARIANTS = {
    "grpo": SMALL,
    "ppo": dataclasses.replace(SMALL, algorithm="ppo", kl_coef=0.1),
    "lora": dataclasses.replace(SMALL, lora_rank=4, kl_coef=0.1),
    "last layer": dataclasses.replace(
        SMALL, train_layers=1, num_minibatches=1, num_microbatches=2
    ),
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
            np.testing.assert_allclose(
                row[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name
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
    if later:
        with monkeypatch.context() as patch:
            patch.setattr(folders, "append", power_cut)
            with pytest.raises(KeyboardInterrupt):
                runs.train(on(mesh, out=out))
        runs.train(on(*later, resume=out))
    else:
        runs.train(on(mesh, out=out))
    assert_same_run(out, one_device(variant))


append = folders.append


def power_cut(out, row):
    """What was learned since the last checkpoint is gone."""
    append(out, row)
    if row["update"] == 2:
        raise KeyboardInterrupt


def test_two_processes_are_one_device(environment, tmp_path, one_device):
    """Both are killed after an update, started again, and the run is the same."""
    out = tmp_path / "run"
    options = ["--model=tiny", "--task=digits", "--num-updates=3", "--save-every=1"]
    options += ["--prompts-per-update=8", "--group-size=4", "--eval-prompts=8"]
    options += [f"--learning-rate={RATE}", f"--mesh={ALL_AXES}", "--processes=2"]
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}

    def pair(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        args = [*options, address, *more]
        return [
            start(environment | four, "train_llm", f"--process={i}", *args)
            for i in range(2)
        ]

    first = pair("--out", out)
    while not (out / "metrics.jsonl").exists() or not lines(out):
        assert all(process.poll() is None for process in first), first[0].stdout.read()
    for process in first:
        process.kill()
        process.communicate()
    said = [process.communicate(timeout=600)[0] for process in pair("--resume", out)]
    assert "policy" in said[0], said[0]
    assert_same_run(out, one_device("grpo"))
    after = json.loads((out / "after.json").read_text())
    assert len(after["samples"]) == 8
    weights.read(out / "policy")
