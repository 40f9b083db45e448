"""The examples, as a user runs them: in processes of their own, killed and resumed."""

import importlib.util
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from processes import EXAMPLES, kill_at, rows, run

SMALL = ["--total-steps", "24000", "--num-envs", "4", "--num-evals", "11"]


def final_returns(text: str) -> list[float]:
    return [
        float(x.split("mean return ")[1].split()[0])
        for x in text.splitlines()
        if x.startswith("seed ")
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help(environment, name):
    out = run(environment, name, "--help")
    expected = {
        "gallery": ("--old-prob", "under the old policy"),
        "sweep": ("--learning-rates", "'s step sizes"),
    }
    for words in expected.get(name, ("--learning-rate", "'s step size")):
        assert words in out


def test_what_tunix_needs_is_said(environment):
    if importlib.util.find_spec("tunix"):
        pytest.skip("google-tunix is installed")
    assert "pip install google-tunix" in run(environment, "tunix_grpo", code=1)


def test_a_sweep_finds_what_learns(environment, tmp_path):
    """Of two learning rates, one of them far too small to learn anything by."""
    rates = ["--learning-rates", "1e-6", "1e-2", "--gae-lambdas", "0.95"]
    small = ["--clip-ranges", "0.2", "--seeds", "8", "--total-steps", "8192"]
    out = run(environment, "sweep", *rates, *small, "--out", tmp_path / "run")
    assert "sweep: 100%" in out and "the best  learning rate 0.01" in out
    history = rows(tmp_path / "run")
    assert [len(row["returns"]) for row in history] == [8, 8]
    slow, fast = (np.median(row["returns"]) for row in history)
    assert slow < 40 and fast > 100
    assert plt.imread(tmp_path / "run" / "sweep.png").shape[1] > 1000


def test_cartpole_is_learned_from_a_cold_start(environment, tmp_path):
    """The README's claim: 475 and more over 100 fresh episodes, seed by seed."""
    out = run(environment, "cartpole", "--seeds", "5", cwd=tmp_path)
    assert "cartpole: 100%" in out and "steps/s" in out  # the progress bar
    assert len(final_returns(out)) == 5 and min(final_returns(out)) >= 475
    (folder,) = (tmp_path / "runs").iterdir()
    assert str(folder.relative_to(tmp_path)) in out
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    history = rows(folder)
    assert history[-1]["step"] <= 150_000
    assert {"approx_kl", "explained_variance", "skipped"} <= history[-1].keys()
    assert all(np.all(np.array(row["skipped"]) == 0) for row in history)


def test_pendulum_is_learned(environment, tmp_path):
    out = run(environment, "pendulum", "--out", tmp_path / "run")
    assert final_returns(out)[0] >= -200  # five seeds here: -160 to -165
    assert "episode.gif" in out


def test_acrobot_is_learned(environment, tmp_path):
    out = run(environment, "acrobot", "--out", tmp_path / "run")
    assert -95 <= final_returns(out)[0] <= -70  # five seeds here: -80 to -85


def test_mountain_car_is_solved(environment, tmp_path):
    """Where PPO with nothing scaled stays at -200."""
    out = run(environment, "mountain_car", "--out", tmp_path / "run")
    assert final_returns(out)[0] >= -120  # five seeds here: -102 to -112
    with Image.open(tmp_path / "run" / "episode.gif") as gif:
        assert gif.n_frames > 50 and gif.size == (480, 240)
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L"))
    assert (last[:, :240] != last[:, 240:]).any()


def test_minatar_runs(environment, tmp_path):
    pytest.importorskip(
        "gymnax", reason="gymnax does not install beside the newest JAX"
    )
    short = ["--total-steps", "65536", "--num-evals", "2"]
    out = run(environment, "minatar", *short, "--out", tmp_path / "run")
    assert final_returns(out)[0] > 0.6  # a random policy: 0.5


def test_a_recurrent_policy_resumes(environment, tmp_path):
    """Its memories are part of the run."""
    more = ["--memory", "8", "--normalise-obs", "--num-minibatches", "2"]
    options = [*SMALL, *more]
    whole = tmp_path / "whole"
    wanted = final_returns(run(environment, "cartpole", *options, "--out", whole))
    out = tmp_path / "run"
    kill_at(environment, 4, 0.0, "cartpole", *options, "--out", out)
    text = run(environment, "cartpole", "--resume", out)
    assert (rows(out), final_returns(text)) == (rows(whole), wanted)


def test_cartpole_is_learned_on_the_host(environment):
    out = run(environment, "gymnasium_vector")
    assert float(out.rsplit("episodes: ", 1)[1]) >= 400


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    returns = final_returns(run(environment, "cartpole", *SMALL, "--out", out))
    return rows(out), returns


@pytest.mark.parametrize(("num_rows", "delay"), [(1, 0.0), (3, 0.02), (5, 0.05)])
def test_killed_and_resumed_is_the_same_run(
    environment, tmp_path, uninterrupted, num_rows, delay
):
    out = tmp_path / "run"
    kill_at(environment, num_rows, delay, "cartpole", *SMALL, "--out", out)
    text = run(environment, "cartpole", "--resume", out)
    assert (rows(out), final_returns(text)) == uninterrupted


def damage(checkpoint):
    """A bit in each of 64 bytes, in the middle, which is in use.

    One bit may matter to no number: about one in a hundred does not.
    """
    data = max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 64):
        content[place] ^= 1
    data.write_bytes(content)


def test_damaged_checkpoints_are_passed_over(environment, tmp_path, uninterrupted):
    """The last two; with all of them damaged, nothing of the run is touched."""
    out = tmp_path / "run"
    kill_at(environment, 5, 0.1, "cartpole", *SMALL, "--out", out)
    whole = [x for x in (out / "checkpoints").iterdir() if x.name.isdigit()]
    # Three are kept, and killed at the wrong moment leaves a fourth.
    *sound, second, newest = sorted(whole, key=lambda path: int(path.name))
    assert sound
    damage(second)
    damage(newest)
    lost = tmp_path / "lost"
    shutil.copytree(out, lost)
    environment = environment | {"PYTHONWARNINGS": "default"}
    text = run(environment, "cartpole", "--resume", out)
    for checkpoint in (newest, second):
        assert f"checkpoint {checkpoint.name} is damaged" in text
    assert (rows(out), final_returns(text)) == uninterrupted
    (out / "metrics.jsonl").write_text("")  # lost: it says what it can
    text = run(environment, "cartpole", "--resume", out)
    assert final_returns(text) == uninterrupted[1]

    for checkpoint in sound:
        damage(lost / "checkpoints" / checkpoint.name)
    before = (lost / "metrics.jsonl").read_text()
    text = run(environment, "cartpole", "--resume", lost, code=1)
    assert "none of the checkpoints" in text
    assert (lost / "metrics.jsonl").read_text() == before


def test_resume_refuses_other_options(environment, tmp_path):
    out = tmp_path / "run"
    kill_at(environment, 1, 0.0, "cartpole", *SMALL, "--out", out)
    text = run(environment, "cartpole", "--resume", out, "--gamma", "0.9", code=1)
    assert "that run has gamma = 0.98, not 0.9" in text
    text = run(environment, "cartpole", "--out", out, code=1)
    assert f"--resume {out}" in text
    text = run(environment, "cartpole", "--resume", tmp_path / "nowhere", code=1)
    assert "no run to continue" in text
