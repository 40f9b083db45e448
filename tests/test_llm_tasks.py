"""Tasks and their rewards: checked by a program, in a process that may fail."""

import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from llm import tasks
from llm.scoring import Scorer
from llm_rewards import by_name
from processes import EXAMPLES


def test_a_reward_that_fails_is_one_samples():
    scorer = Scorer(by_name, limit=1.5)
    names = ["fine", "raise", "hang", "nan", "die", "none", "inf", "huge", "exit"]
    names += ["unsendable", "many", "one of many", "text", "fine"]
    start = time.monotonic()
    rewards, scored = scorer([0.25] * 13 + [0.75], names)
    assert time.monotonic() - start < 40
    np.testing.assert_array_equal(scored, [name == "fine" for name in names])
    np.testing.assert_array_equal(rewards, [0.25, *[0] * 12, 0.75])
    rewards, scored = scorer([1.0], ["fine"])  # it goes on
    assert scored.all() and rewards == 1
    scorer.close()


def test_processes_that_are_killed_between_two_batches():
    """Or in one: what they had not scored yet is scored by others."""
    scorer = Scorer(by_name, limit=30)
    assert scorer([1.0], ["fine"])[1].all()
    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(1)  # it is noticed
    rewards, scored = scorer([0.25] * 20, ["fine"] * 20)
    assert scored.all() and np.all(rewards == 0.25)

    def kill():
        for child in multiprocessing.active_children():
            child.kill()

    later = threading.Timer(0.5, kill)
    later.start()
    rewards, scored = scorer([0.25] * 20, ["slow"] * 20)
    assert np.sum(scored) >= 16 and np.all(rewards[scored] == 0.25)  # 4 at a time
    scorer.close()


def test_arithmetic():
    task = tasks.task("arithmetic")
    learned = task.problems("0", 2000, False)
    held_out = task.problems("0", 2000, True)
    assert {p.prompt for p in learned}.isdisjoint(p.prompt for p in held_out)
    assert len({p.prompt for p in learned}) == 65
    assert len({p.prompt for p in held_out}) == 16
    for prompt, answer in learned[:50]:
        a, _, b, _ = prompt.splitlines()[-1].split()
        assert int(a) + int(b) == int(answer)
    assert task.problems("0", 5, False) == learned[:5]
    assert task.problems("1", 5, False) != learned[:5]
    assert task.reward("12", " 12\n") == 1
    for wrong in ("", "1", "12 3", "12.", "twelve", "112"):
        assert task.reward("12", wrong) == 0


def test_digits():
    task = tasks.task("digits")
    assert [task.reward("", x) for x in ("", "1a", "12")] == [0, 0.5, 1]
    learned, judged = (task.problems("0", 50, held_out) for held_out in (False, True))
    assert len({len(p.prompt) for p in learned}) > 3
    assert not {p.prompt for p in learned} & {p.prompt for p in judged}
    assert task.problems("0", 5, False) == learned[:5]


def test_unknown_tasks():
    for name in ("arithmetics", "reasoning-gym", "reasoning-gym:"):
        with pytest.raises(ValueError, match="no task"):
            tasks.task(name)


def test_reasoning_gym(tmp_path):
    program = """
import pathlib, sys
from llm import tasks
task = tasks.task("reasoning-gym:chain_sum")
problems = task.problems("0", 4, False)
assert len({p.prompt for p in problems}) > 1
for p in problems:
    assert p.prompt.count("=") == 3 and task.reward(p.answer, p.answer["answer"]) == 1
    assert task.reward(p.answer, "no") < 1
asked = [{p.prompt for p in task.problems("0", 60, held_out)} for held_out in (0, 1)]
assert all(asked) and not asked[0] & asked[1]
# Its scorer would eval it.
trap = pathlib.Path(sys.argv[1])
text = f"__import__('pathlib').Path({str(trap)!r}).touch()"
entry = tasks._gym("spiral_matrix", 0, 1)[0]
for call in (
    lambda: tasks.task("reasoning-gym:spiral_matrix"),
    lambda: tasks._gym_reward("spiral_matrix", entry, text),
):
    try:
        call()
    except PermissionError as error:
        assert "spiral_matrix runs answers as code" in str(error)
    else:
        raise AssertionError
assert not trap.exists()
assert task.reward(problems[0].answer, problems[0].answer["answer"]) == 1
tasks._gym("spiral_matrix", 0, 1).score_answer(text, entry)
assert trap.exists()  # it does
try:
    tasks.task("reasoning-gym:nothing")
except Exception as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    examples = str(EXAMPLES)
    # In a process of its own: it warns, and warnings are errors here.
    command = [sys.executable, "-c", program, str(tmp_path / "trap")]
    subprocess.run(command, cwd=examples, check=True)


def test_reasoning_gym_is_scored_by_processes_of_its_own(environment, tmp_path):
    script = tmp_path / "scored.py"
    script.write_text("""
from llm import scoring, tasks
if __name__ == "__main__":
    task = tasks.task("reasoning-gym:chain_sum")
    answers = [p.answer for p in task.problems("0", 2, False)]
    scorer = scoring.Scorer(task.reward, 60)
    rewards, scored = scorer(answers, [answers[0]["answer"], "no"])
    scorer.close()
    assert scored.all() and rewards[0] == 1 > rewards[1], (rewards, scored)
""")
    env = environment | {"PYTHONPATH": str(EXAMPLES)}
    subprocess.run([sys.executable, str(script)], env=env, check=True)
