"""The benchmarks run, small, without the peers, and leave their tables and pictures."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llm.algorithms import ALGORITHMS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LEFT = {
    "head": {"table.md", "table.json", "head_memory.png", "head_time.png"},
    "llm_step": {"llm_step.md", "llm_step.json", "llm_step.png", "llm_alone.json"},
    "llm_learning": {"llm_learning.md", "llm_learning.json", "llm_learning.png"},
    "control_learning": {
        *("control_learning.md", "control_learning.json"),
        *("control_learning.png", "control_ablation.png"),
    },
    "control_speed": {"control_speed.md", "control_speed.json", "control_speed.png"},
    "losses": {"losses.md", "losses.json"},  # their values are checked in the run
}


def test_the_table_of_learning():
    """What was measured last is what README says of it."""
    runs = results("llm_learning")
    seeds = {name: [r for r in runs if r["algorithm"] == name] for name in ALGORITHMS}
    assert len(runs) == 18 and all(len(of) == 3 for of in seeds.values())
    for run in runs:
        rewards = [row["reward"] for row in run["rows"]]
        assert len(rewards) <= 25 and np.mean(rewards[-5:]) >= 0.9
        assert run["before"] < 0.65 and run["after"] > 0.9
        assert run["peak_gib"] < 5
    clipped = [row["clip_fraction"] for run in seeds["grpo"] for row in run["rows"]]
    assert 0 < np.mean(clipped) < 0.1
    before, after = (np.mean([run[k] for run in runs]) for k in ("before", "after"))
    times = [y["sample_seconds"] + y["update_seconds"] for r in runs for y in r["rows"]]
    page = " ".join((BENCHMARKS.parent / "README.md").read_text("utf-8").split())
    assert f"an update takes {np.median(times):.1f} seconds" in page
    assert f"go from {before:.2f} right to {after:.2f}" in page


def test_the_table_of_the_step():
    """README says of TRL what was measured last."""
    found = results("llm_step")
    page = " ".join((BENCHMARKS.parent / "README.md").read_text("utf-8").split())
    sampling = []
    for size, in_memory in zip(found, ("in {} of its", "in {} of it"), strict=True):
        ours, *others = found[size]
        assert ours["method"] == "jaxppo"
        off = [x["gradient off by"] for x in others if "gradient off by" in x]
        assert len(off) == 4 and max(off) < 1e-4  # TRL's in one pass, and in parts
        theirs = [x for x in others if "TRL" in x["method"] and "bf16" not in str(x)]
        fastest = min(theirs, key=lambda row: row["update, s"])
        speed = fastest["update, s"] / ours["update, s"]
        assert speed >= 1.5 and f"{speed:.1f} times as fast" in page
        memory = ours["peak, MiB"] / fastest["peak, MiB"]
        assert in_memory.format(f"{memory:.2f}") in page
        sampling.append(theirs[0]["sampling, s"] / ours["sampling, s"])
    assert "Sampling is {:.1f} and {:.1f} times as fast".format(*sampling) in page


def test_the_memory_of_the_head():
    """README and its page say what was compiled for an H200 last."""
    _, _, (by_tokens, _) = results("head")["memory"]
    rows = ("naive", "re-materialised", "`token_log_probs`")
    page = (BENCHMARKS.parent / "docs/head.md").read_text("utf-8")
    for row, line in zip(rows, by_tokens["lines"].values(), strict=True):
        small, large = (line[by_tokens["x"].index(n)] for n in (8192, 32768))
        assert re.search(rf"(?m)^\| {row}.* \| {small:.0f} \| {large:.0f} \| ", page)
    naive, _, ours = (x[3] for x in by_tokens["lines"].values())
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text("utf-8").split())
    assert f"holds {ours:.0f} MiB" in readme and f"holds {naive:.0f} (" in readme


LEARNED = {  # at least, and in no more steps than
    **{"CartPole-v1": (490, 5e5), "Acrobot-v1": (-86, 5e5)},
    **{"MountainCar-v0": (-110, 5e5), "Pendulum-v1": (-200, 5e5)},
    **{"Breakout-MinAtar": (14.5, 1e6), "Hopper-v5": (2000, 5e5)},
    "HalfCheetah-v5": (1400, 5e5),
}


def test_the_tables_of_control():
    """What was learned, and how fast, is what the pages say of it."""
    docs = BENCHMARKS.parent / "docs"
    page, readme = (
        (docs / "control.md").read_text(),
        (BENCHMARKS.parent / "README.md").read_text("utf-8"),
    )
    for name in ("control_learning", "control_speed"):
        tables = (BENCHMARKS / f"results/{name}.md").read_text("utf-8").splitlines()
        lines = [line for line in tables if line.startswith("|")]
        assert len(lines) > 8 and all(line in page for line in lines)

    learned = results("control_learning")
    assert learned["tasks"].keys() == LEARNED.keys()
    for name, (least, steps) in LEARNED.items():
        task = learned["tasks"][name]
        assert len(task["final"]) == 5 and np.mean(task["final"]) >= least, name
        assert task["steps"][-1] <= steps

    def to_475(name):
        task = learned["ablation"][name]
        solved = np.array(task["returns"]) >= 475
        assert solved.any(0).all()
        return np.median(np.array(task["steps"])[solved.argmax(0)])

    ours, theirs = to_475("ours"), to_475("purejaxrl itself")
    assert ours <= theirs / 3 and f"{theirs / ours:.0f} times as many" in readme


def results(name):
    return json.loads((BENCHMARKS / f"results/{name}.json").read_text("utf-8"))


@pytest.fixture
def script(monkeypatch):
    """A script of reliability/, imported."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # it adds to them
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.syspath_prepend(BENCHMARKS / "reliability")
    return importlib.import_module


def test_the_programme(script):
    """The table has the rows that its script makes, but for R13, which it measures."""
    table = script("table")
    text = (BENCHMARKS / "results/reliability.md").read_text("utf-8")
    cells = [[x.strip() for x in y.split("|")[1:-1]] for y in text.splitlines()[2:]]
    assert [x[0] for x in cells] == list(table.PROGRAMME)
    for name, what, asked, seen in cells:
        assert (what, asked) == table.PROGRAMME[name][:2]
        if name != "R13":
            assert seen == table.PROGRAMME[name][2](table.measured()), name


def test_the_mutants_that_lived(script):
    """Each has its line, and the table is what the results say."""
    mutation, found = script("mutation"), results("mutation")
    lines = mutation.argued()
    for x in found["survivors"]:
        file = x["at"].partition(":")[0]
        assert lines[f"{file} | {x['in']} | {x['change']}"] == x["why"] != "gap"
    assert len(found["survivors"]) == found["total"]["alive"]
    text = (BENCHMARKS / "results/mutation.md").read_text("utf-8")
    assert text == mutation.page(found) + "\n"


def test_the_laws_at_a_thousand_examples():
    found = results("laws")
    assert found["examples"] == 1000 * found["tests"] >= 2e5
    assert found["failed"] == 0


def test_odd_calls():
    found = results("calls")
    assert found["calls"] >= 1e5 and found["functions"] >= 98
    bad = ("wrong", "unclear", "refused", "unjudged", "hang", "crash")
    assert all(found["outcomes"].get(k, 0) == 0 for k in bad)


def test_what_runs_survive():
    """Each fault in the measured runs: all survived, and little was lost."""
    rows = {(row["example"], row["fault"]): row for row in results("survival")}
    assert len(rows) == 24  # 14 faults; 1 is of rewards alone, 3 are of control alone
    assert all(row["survived"] == row["tried"] >= 1 for row in rows.values())
    for example, between in {"cartpole": 1, "train_llm": 2}.items():
        killed, ended = (rows[example, fault] for fault in ("kill -9", "SIGTERM"))
        assert killed["tried"] >= 50 and killed["most"] <= between
        assert int(re.search(r"(\d+) as it wrote", killed["seen"])[1]) >= 20
        assert ended["tried"] >= 20 and ended["most"] == 0
    assert rows["cartpole", "checkpoints damaged"]["tried"] >= 400


def test_a_long_run():
    """Nothing grows, drifts or is compiled again; what Orbax keeps is known."""
    updates, checkpoints = results("soak")
    assert updates["looks"]["at"][-1] >= 1e6 and checkpoints["looks"]["at"][-1] >= 1e4
    assert set(updates["looks"]["count"]) == {1}
    assert updates["survived"] == updates["faults"] > 1000
    for of, most in (updates, 1), (checkpoints, 25_000):  # bytes a step
        at, mib = (np.array(of["looks"][k], float)[20:] for k in ("at", "MiB"))
        assert np.polyfit(at, mib, 1)[0] * 2**20 < most
        assert len(set(of["looks"]["files"][20:])) == 1


@pytest.mark.parametrize(
    "path",
    [*sorted(BENCHMARKS.glob("*/*.py")), BENCHMARKS / "scaling.py"],
    ids=lambda path: path.stem,
)
def test_the_long_ones_start(environment, path):
    """Each finds what it imports, wherever it is started."""
    start = f"import sys; sys.path[0] = {str(path.parent)!r}; import {path.stem}"
    command = [sys.executable, "-c", start]
    subprocess.run(command, env=environment, cwd="/", check=True)


@pytest.mark.parametrize("name", LEFT)
def test_runs(name, tmp_path):
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--out", tmp_path]
    if name == "llm_learning":  # those that no other test runs from the command line
        command += ["--seeds", "1", "--algorithms", "dr_grpo", "gspo", "cispo"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    out = subprocess.run(
        list(map(str, command)),
        **{"env": env, "cwd": tmp_path, "text": True, "capture_output": True},
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert LEFT[name] <= {path.name for path in tmp_path.iterdir()}
    for table in tmp_path.glob("*.md"):
        assert "jaxppo" in table.read_text()
