"""Rows T04 to T13 in processes of their own; `benchmarks/reliability/survival.py`
does the same at scale."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from common import devices, folders
from processes import EXAMPLES, kept_to, pair, rows, run, start, wait_for

SMALL = ["--total-steps=16000", "--num-envs=4", "--num-evals=7", "--normalise-obs"]
TWO = ["cartpole", "--mesh=envs=2"]
SHORT = ["--total-steps=6144", "--num-envs=4", "--num-evals=3", "--normalise-obs"]


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(environment, "cartpole", *SMALL, "--out", out)
    return rows(out)


def stopped(environment, out, num_rows, *args, by=signal.SIGTERM):
    """A run that a signal ends after so many lines; what it says."""
    process = start(environment, "cartpole", *args)
    with kept_to([process]):
        wait_for(out, num_rows, [process])
        process.send_signal(by)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + by, said
    return said


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_T09_a_terminated_run_saves_and_leaves(environment, tmp_path, whole, by):
    """At once after a signal: not a step is lost, and what follows it is not run."""
    out = tmp_path / "run"
    said = stopped(environment, out, 2, *SMALL, "--out", out, by=by)
    assert f"Go on with --resume {out}" in said
    done = len(rows(out))
    assert 2 <= done < len(whole)
    assert (out / "checkpoints" / str(rows(out)[-1]["step"])).exists()
    run(environment, "cartpole", "--resume", out)
    assert rows(out) == whole


TWICE = """
import os, signal, sys
from common import signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
with signals.held() as asked:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
        print(asked(), flush=True)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_T09_a_second_signal_ends_the_process_at_once(environment, first, second):
    command = [sys.executable, "-c", TWICE, str(int(first)), str(int(second))]
    given = {"env": environment, "cwd": EXAMPLES, "capture_output": True}
    ended = subprocess.run(command, **given, text=True, timeout=300)
    assert ended.returncode == -second and ended.stdout == f"{first:d}\n", ended
    assert f"{first.name}: will save, and end, after this step." in ended.stderr


def test_T09_one_of_two_is_terminated_and_both_leave(environment, tmp_path):
    out = tmp_path / "run"
    both = pair(environment, *TWO, *SHORT, "--out", out)
    with kept_to(both):
        wait_for(out, 1, both)
        both[1].send_signal(signal.SIGTERM)
        ends = [x.communicate(timeout=300)[0] for x in both]
        assert [x.returncode for x in both] == [143, 143], ends
    assert (out / "checkpoints" / str(rows(out)[-1]["step"])).exists()


@pytest.mark.parametrize("which", [0, 1])
def test_T04_one_of_two_is_killed_and_the_other_ends(environment, tmp_path, which):
    """In 100 seconds at most, saying why; the pair resumes."""
    out = tmp_path / "run"
    both = pair(environment, *TWO, *SHORT, "--out", out)
    with kept_to(both):
        wait_for(out, 1, both)
        begin = time.monotonic()
        both[which].kill()
        said, _ = both[1 - which].communicate(timeout=300)
        assert time.monotonic() - begin < 100
        assert both[1 - which].returncode not in (0, None)
    ours = "Another process may have ended" in said and "with --resume" in said
    jaxs = which == 0 and "another task died" in said  # who keeps the list is gone
    assert ours or jaxs, said
    again = pair(environment, *TWO, "--resume", out)
    with kept_to(again):
        ends = [x.communicate(timeout=300)[0] for x in again]
        assert [x.returncode for x in again] == [0, 0], ends
    assert [row["step"] for row in rows(out)] == [2048, 4096, 6144]


@pytest.mark.parametrize(
    ("error", "network"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: connection reset"), True),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier"), True),
        (FloatingPointError("learner: 10 steps in a row"), False),
    ],
)
def test_T04_what_ended_the_other_is_said(monkeypatch, capsys, error, network):
    """Whatever class JAX gives to what the network says."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit), devices.together():
        raise error
    said = "".join(capsys.readouterr())
    assert ("Another process may have ended" in said) == network
    assert str(error) in said and "with --resume" in said


def test_T08_on_other_devices(environment, tmp_path, whole):
    """From one to two and back: what is added up in another order, and no more."""
    out = tmp_path / "run"
    stopped(environment, out, 2, *SMALL, "--out", out)
    done = len(rows(out))
    two = environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    stopped(two, out, done + 1, "--mesh=envs=2", "--resume", out)
    for name in ("entropy", "approx_kl", "policy_loss", "value_loss"):
        ours, theirs = (x[done][name] for x in (rows(out), whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5, err_msg=name)
    run(environment, "cartpole", "--resume", out)
    assert len(rows(out)) == len(whole)


def test_T06_changed_options_are_refused(environment, tmp_path, whole):
    """In the file, or because the code has others now; put back, the run goes on."""
    out = tmp_path / "run"
    stopped(environment, out, 2, *SMALL, "--out", out)
    config = (out / "config.json").read_text()
    for change, message in {
        ("gamma", 0.5): "is of a run with gamma = 0.98, not 0.5",
        ("of_a_later_version", 1): "of_a_later_version, which this version",
    }.items():
        name, value = change
        (out / "config.json").write_text(json.dumps(json.loads(config) | {name: value}))
        assert message in run(environment, "cartpole", "--resume", out, code=1)
    (out / "config.json").write_text(config)
    run(environment, "cartpole", "--resume", out)
    assert rows(out) == whole


def test_T11_broken_steps_are_left_out(environment, tmp_path):
    """NaN or inf at one step in a hundred: counted, and the rest is learned from."""
    out = tmp_path / "run"
    run(environment, "cartpole", *SMALL, "--out", out, fault="environment")
    left_out = [row["left_out"][0] for row in rows(out)]
    # 2048 steps each, 0.01 of them: a deviation of 0.0022
    assert all(0.002 < x < 0.02 for x in left_out)
    assert all(row["skipped"] == [0] for row in rows(out))
    assert rows(out)[-1]["eval_return"][0] > 60  # they break after 100 steps or so


def test_T11_an_environment_that_only_breaks_ends_the_run(environment, tmp_path):
    out = tmp_path / "run"
    said = run(environment, "cartpole", *SMALL, "--out", out, fault="dead", code=1)
    assert "Look at the environment" in said and rows(out)[-1]["left_out"] == [1]


def test_T01_three_bad_steps_are_skipped_and_counted(environment, tmp_path, whole):
    out = tmp_path / "run"
    run(environment, "cartpole", *SMALL, "--out", out, fault="loss")
    # 10 epochs of 8 minibatches an update, four updates a line
    counted = [row["skipped"][0] * 80 * 4 for row in rows(out)]
    np.testing.assert_allclose(counted, [3] + [0] * (len(whole) - 1), atol=1e-3)


def test_T07_a_clock_that_jumps_changes_nothing(environment, tmp_path, whole):
    out = tmp_path / "run"
    run(environment, "cartpole", *SMALL, "--out", out, fault="clock")
    assert rows(out) == whole


def test_T13_no_memory_left(environment, tmp_path, whole):
    """Of a device: an error that says so; what was saved is as it was."""
    out = tmp_path / "run"
    said = run(environment, "cartpole", *SMALL, "--out", out, fault="memory", code=1)
    assert "Out of memory" in said
    run(environment, "cartpole", "--resume", out)
    assert rows(out) == whole


def test_T13_a_picture_on_a_full_disk(tmp_path):
    with pytest.raises(OSError, match=r"curve.png could not .* with --resume .*run$"):
        with folders.writing(tmp_path / "run/curve.png"):
            raise OSError(28, "No space left on device")


def test_T13_a_full_disk(environment, tmp_path, whole):
    """The checkpoints before are as they were, and the message says what to do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk), "-o"]
    if subprocess.run([*mount, "size=400k"], capture_output=True).returncode:
        pytest.skip("making a small disk takes Linux and root")
    try:
        out = disk / "run"
        said = run(environment, "cartpole", *SMALL, "--out", out, code=1)
        assert f"could not be written to {out}/checkpoints" in said
        assert "No space left" in said and f"continue with --resume {out}" in said
        subprocess.run([*mount, "remount,size=70m"], check=True)
        run(environment, "cartpole", "--resume", out)
        assert rows(out) == whole
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
