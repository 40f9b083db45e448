"""Runs of the language-model example, from the command line to what they leave."""

import dataclasses
import json
import os
import random
import re
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import matplotlib.pyplot as plt
import numpy as np
import pytest
from llm import options, rollouts, runs, sharding, tasks, weights
from llm.algorithms import ALGORITHMS
from llm_models import needs_smollm2
from llm_rewards import at_times, by_name
from matplotlib.colors import to_rgb
from processes import kept_to, kill_at, rows, run, start, wait_for
from safetensors.numpy import load_file

METRICS = {
    "reward",
    "length",
    "approx_kl",
    "clip_fraction",
    "entropy",
    "failed_rewards",
}
CRITIC = {"value_loss", "explained_variance"}


@pytest.mark.parametrize("algorithm", ["grpo", "cispo", "ppo"])
def test_smoke(environment, tmp_path, algorithm):
    """Everything a real run leaves, from the tiny model and two updates."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    args = ["--smoke", "--algorithm", algorithm]
    said = run(environment, "train_llm", *args, cwd=tmp_path)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2 * 60  # a minute of two cores
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith(f"{algorithm}-")
    assert f"{algorithm}: 100%" in said and f"writing to runs/{out.name}/" in said
    assert "before training: mean reward" in said and "after training:" in said
    first, second = rows(out)
    critic = ALGORITHMS[algorithm].critic
    assert first.keys() >= METRICS | (CRITIC if critic else set())
    assert first["failed_rewards"] == 0 and first["skipped"] == 0
    assert first["reward"] > 0 and first["loss"] != second["loss"]
    for when in ("before", "after"):
        report = json.loads((out / f"{when}.json").read_text())
        assert len(report["samples"]) == 4
        assert report["samples"][0].keys() == {"prompt", "completion", "reward"}
    image = plt.imread(out / "curves.png")
    assert METRICS - {"failed_rewards"} <= runs.PANELS.keys()
    curves = np.max(np.abs(image[..., :3] - to_rgb("tab:blue")), -1) < 0.02
    assert image.shape[0] > 500 and np.mean(curves) > 1e-3
    assert [x.name for x in (out / "checkpoints").iterdir()] == ["2"]
    assert list((out / "tensorboard").glob("events.*"))
    start, policy = runs.tiny.source(), weights.read(out / "policy")
    assert policy.config == start.config and policy.end_ids == start.end_ids
    name = "model.layers.1.mlp.up_proj.weight"
    moved = np.max(np.abs(policy.tensor(name) - start.tensor(name)))
    assert 1e-6 < moved < 2.1e-5  # four steps of 5e-6


@pytest.mark.usefixtures("relaxed")
def test_options_together(tmp_path):
    """bfloat16, low-rank updates, a reference, a restricted sampler, microbatches."""
    args = ["--smoke", "--dtype=bfloat16", "--lora-rank=4", "--kl-coef=0.1"]
    args += ["--top-p=0.9", "--top-k=50", "--temperature=0.7", "--num-epochs=2"]
    args += ["--num-microbatches=2", "--num-minibatches=2", "--train-layers=1"]
    out = tmp_path / "run"
    given = [*args, "--learning-rate=1e-2", "--no-remat", "--out", str(out)]
    runs.train(runs.parse(runs.Options(), "", given))
    first, second = rows(out)
    assert first["skipped"] == second["skipped"] == 0
    assert 0 < first["ref_kl"] < 1 and 0 < second["ref_kl"] < 1
    start, policy = runs.tiny.source(), weights.read(out / "policy")
    for layer, moves in enumerate([False, True]):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        same = np.array_equal(policy.tensor(name), start.tensor(name))
        assert same != moves


def test_smoke_changes_only_what_is_not_given():
    usual = runs.Options().num_updates
    given = ["--smoke", f"--num-updates={usual}", "--task=reasoning-gym:chain_sum"]
    options = runs.parse(runs.Options(), "", given)
    assert (options.model, options.num_updates) == ("tiny", usual)
    assert options.task == "reasoning-gym:chain_sum" and options.eval_prompts == 4


def test_all_algorithms_can_be_named():
    assert get_args(get_type_hints(runs.Options)["algorithm"]) == tuple(ALGORITHMS)


def documented_meshes():
    """Commands of the pages that name one."""
    root = Path(runs.__file__).parents[2]
    for page in ("README.md", "docs/scaling.md", "examples/train_llm.py"):
        text = (root / page).read_text("utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            whole = " ... " not in line  # options that are left out may make it fit
            if "--mesh " in line and "fsdp=" in line and whole:
                yield pytest.param(line, id=f"{page}: {line.strip()[-40:]}")


@pytest.mark.parametrize("line", [*documented_meshes()])
def test_the_documented_meshes_divide_their_batches(line):
    mesh = re.search(r"--mesh ([\w=,]+)", line)[1]
    sizes = {axis: 1 for axis in sharding.AXES}
    sizes |= {k: int(n) for k, n in re.findall(r"(\w+)=(\d+)", mesh)}
    names = "prompts-per-update", "num-microbatches"
    found = {name: re.search(rf"--{name} (\d+)", line) for name in names}
    given = {k.replace("-", "_"): int(n[1]) for k, n in found.items() if n}
    options.refuse_parts(runs.Options(**given), SimpleNamespace(shape=sizes))


@needs_smollm2
@pytest.mark.usefixtures("gigabytes")
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_smollm2_learns(environment, tmp_path, algorithm):
    """From about 0.5 to 0.9 and more in 10 updates; the default is 25."""
    out = tmp_path / "run"
    args = ["--algorithm", algorithm, "--num-updates", "10", "--out", out]
    run(environment, "train_llm", *args)
    rewards = [row["reward"] for row in rows(out)]
    assert 0.3 < rewards[0] < 0.7
    assert np.mean(rewards[-3:]) >= 0.9
    before, after = (
        json.loads((out / f"{when}.json").read_text())["mean_reward"]
        for when in ("before", "after")
    )
    assert before < 0.65 and after >= 0.85
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of any so far
    assert peak / (2**20 if sys.platform == "linux" else 2**30) < 8


SMALL = ["--model=tiny", "--task=digits", "--num-updates=5", "--save-every=2"]
SMALL += ["--prompts-per-update=4", "--group-size=4", "--eval-prompts=4"]
SMALL += ["--algorithm=ppo", "--kl-coef=0.1", "--learning-rate=1e-3"]


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(environment, "train_llm", *SMALL, "--out", out)
    return out


@pytest.mark.parametrize(("num_rows", "delay"), [(1, 0.0), (2, 0.05), (4, 0.1)])
def test_killed_and_resumed_is_the_same_run(
    environment, tmp_path, uninterrupted, num_rows, delay
):
    out = tmp_path / "run"
    kill_at(environment, num_rows, delay, "train_llm", *SMALL, "--out", out)
    run(environment, "train_llm", "--resume", out)
    assert rows(out) == rows(uninterrupted)
    ours, theirs = (
        load_file(x / "policy" / "model.safetensors") for x in (out, uninterrupted)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_a_terminated_run_saves_and_leaves(environment, tmp_path, uninterrupted):
    """The signal is to the processes that score, too; nothing is lost but the step."""
    out = tmp_path / "run"
    process = start(environment, "train_llm", *SMALL, "--out", out, group=True)
    with kept_to([process]):
        wait_for(out, 1, [process])
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=900)
    assert process.returncode == 128 + signal.SIGTERM, said
    done = len(rows(out))
    assert (out / "checkpoints" / str(done)).exists() and done < 5
    assert "will save, and end" in said
    assert f"Go on with --resume {out}" in said
    run(environment, "train_llm", "--resume", out)
    assert rows(out) == rows(uninterrupted)
    assert all(row["failed_rewards"] == 0 for row in rows(out))


@pytest.mark.usefixtures("relaxed")
def test_failing_rewards_cost_their_samples_only(tmp_path, monkeypatch):
    task = tasks.task("digits")._replace(reward=at_times)
    monkeypatch.setattr(tasks, "task", lambda name: task)
    small = runs.parse(runs.Options(), "", ["--smoke", "--reward-seconds", "0.5"])
    out = tmp_path / "run"
    runs.train(dataclasses.replace(small, out=out))
    for row in rows(out):
        assert 0 < row["failed_rewards"] < 32
        assert 0 <= row["reward"] <= 1 and np.isfinite(row["loss"])
        assert row["skipped"] == 0
    # All of them: nothing to learn from, and nothing learned.
    monkeypatch.setattr(tasks, "task", lambda name: task._replace(reward=float))
    out = tmp_path / "none"
    runs.train(dataclasses.replace(small, out=out))
    assert [row["failed_rewards"] for row in rows(out)] == [32, 32]
    start, policy = runs.tiny.source(), weights.read(out / "policy")
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(policy.tensor(name), start.tensor(name))


@pytest.mark.usefixtures("relaxed")
def test_the_critic_learns(tmp_path, monkeypatch):
    """What a prompt is worth, on a policy that stays as it is."""

    def problems(seed, count, held_out):
        draw = random.Random(seed)
        return [tasks.Problem(f"is {x}", x) for x in draw.choices((0, 1), k=count)]

    task = tasks.task("digits")._replace(reward=by_name, problems=problems)
    monkeypatch.setattr(tasks, "task", lambda name: task)
    args = ["--smoke", "--algorithm=ppo", "--num-updates=25", "--learning-rate=0"]
    args += ["--critic-learning-rate=1e-2"]
    runs.train(runs.parse(runs.Options(), "", [*args, "--out", str(tmp_path / "run")]))
    explained = [row["explained_variance"] for row in rows(tmp_path / "run")]
    assert explained[0] == 0  # its head starts from zeros
    assert np.mean(explained[-5:]) > 0.25  # 0.49; the tokens after it are noise


REFUSED = {
    "mesh": (["--mesh", "data=3"], "mesh 'data=3' has 3 devices, and there are"),
    "axis": (["--mesh", "rows=2"], "expected something like data=2,tensor=4"),
    "task": (["--task", "sums"], "no task 'sums'"),
    "model": (["--model", "nowhere"], "no model at nowhere"),
    "prompts": (["--max-prompt-tokens", "9"], "--max-prompt-tokens 2"),
    "greedy": (["--temperature", "0"], "expected a number above 0"),
    "nothing": (["--top-p", "0"], r"top_p 0.0; expected a number in \(0, 1\]"),
    "no word": (["--top-k", "0"], "top_k 0; expected at least 1"),
    "unknown words": (["--top-k", "9999"], "top_k 9999, of 258 tokens"),
    "no saving": (["--save-every", "0"], "save_every 0; expected at least 1"),
    "alone": (["--processes", "2", "--process", "0"], "no --coordinator"),
    "unjudged": (["--eval-prompts", "0"], "eval_prompts 0; expected at least 1"),
    "length": (["--max-new-tokens", "500"], "the model has seen 512 at most"),
    "parts": (["--num-microbatches", "3"], "--prompts-per-update 6"),
    "layers": (["--train-layers", "3"], "3 layers to train, of a model with 2"),
}


def test_a_longer_prompt_gives_way(monkeypatch):
    many = [tasks.Problem("1 " * n, "") for n in (2, 40, 3)]
    found = tasks.task("digits")._replace(problems=lambda *_: many)
    here = SimpleNamespace(task=found, room=32, tokenizer=runs.tiny.tokenizer())
    assert rollouts.Player.problems(here, "", 3, False) == [many[0], many[2], many[0]]


@pytest.mark.usefixtures("relaxed")
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, case):
    args, message = case
    given = ["--model", "tiny", *args, "--out", str(tmp_path / "run")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.train(runs.parse(runs.Options(), "", given))
    assert not (tmp_path / "run").exists()
