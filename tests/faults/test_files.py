"""Rows X01 to X05: what files and a model's answers can do to us."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common.checkpoints import Checkpoints, _sum_of_bits
from llm import tasks

ROOT = Path(__file__).parents[2]
CODE = sorted([*(ROOT / "jaxppo").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
RUN = ROOT / "run.py"  # it makes environments, so it may start programs
UNPICKLE = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "yaml"}
PARSERS = {"sympy", "numexpr", "asteval", "code", "codeop", "runpy", "imp"}
NAMES = {"eval", "exec", "compile", "__import__", "breakpoint", "execfile"}
METHODS = {"parse_expr", "sympify", "literal_eval", "exec_module", "import_string"}
METHODS |= {"eval", "exec", "run_path", "run_module", "from_pickle", "load_pickle"}
KEYWORDS = {"allow_pickle", "trust_remote_code", "weights_only", "shell"}
HARMLESS = {"PathLike", "environ", "replace"}
PROGRAMS = {"system", "popen", "startfile", "posix_spawn", "fork", "forkpty"}
ANSWERS = {
    "code": "__import__('os').system('touch owned')",
    "powers": "9**9**9**9",
    "brackets": "(" * 1_000_000,
    "digits": "9" * 1_000_000 + "x",
    "lines": "\n" * 1_000_000,
    "nul": "\0" * 1000,
    "surrogate": "\ud800",
    "other digits": "\u0661\u00b2",
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def executes(source):
    """What in a program could run what it reads: by name, called or not."""
    tree = ast.parse(source)
    found = set(imports(tree)) & (UNPICKLE | PARSERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found |= {node.id} & NAMES
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & METHODS | {ast.unparse(node)} & {"torch.load"}
        elif isinstance(node, ast.keyword):
            found |= {node.arg} & KEYWORDS
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            found |= {ast.unparse(node.args[1]).strip("'")} & (NAMES | METHODS)
    return found


def starts(source):
    """What in a program could start another one."""
    tree = ast.parse(source)
    found = set(imports(tree)) & {"subprocess", "pty", "pexpect", "sh", "ctypes"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
            runs = node.attr in PROGRAMS or node.attr.startswith(("exec", "spawn"))
            found |= {node.attr} if runs else set()
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found |= {alias.name for alias in node.names} - HARMLESS
    return found


@pytest.mark.parametrize("path", [*CODE, RUN], ids=lambda p: str(p.relative_to(ROOT)))
def test_X01_nothing_unpickles_and_X05_nothing_evaluates(path):
    assert not executes(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "def f():\n    import marshal",
        "eval(text)",
        "f = eval",
        "run = {'x': exec}",
        "compile(text, '', 'eval')",
        "__import__(name)",
        "getattr(builtins, 'eval')(text)",
        "builtins.exec(text)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, **dict(trust_remote_code=True))",
        "ast.literal_eval(text)",
        "sympy.parse_expr(text)",
        "spec.loader.exec_module(module)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_X01_the_check_itself_can_fail(source):
    assert executes(source)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["arithmetic", "digits"])
def test_X03_answers_are_not_executed(name, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = tasks.task(name)
    start = time.monotonic()
    score = task.reward("12", ANSWERS[answer])
    assert time.monotonic() - start < 1  # a loop over a megabyte, and a slow machine
    assert 0 <= score < 1 and (name == "digits" or score == 0)
    assert not list(tmp_path.iterdir())


GYM = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
from llm import tasks
from reasoning_gym.factory import DATASETS
answers = json.loads(sys.stdin.read())
os.chdir(sys.argv[1])
scored, refused = 0, []
for name in sorted(DATASETS):
    try:
        task = tasks.task(f"reasoning-gym:{name}")
    except (PermissionError, ValueError, AssertionError) as error:
        refused.append(f"{name}: {error}")
        continue
    answer = task.problems("0", 1, False)[0].answer
    for kind, text in answers.items():
        start = time.process_time()
        try:
            score = task.reward(answer, text)
        except PermissionError:
            raise
        except Exception:  # the scorer of this task says so of what is no answer
            score = 0
        assert 0 <= score < 0.5, (name, kind, score)
        took = time.process_time() - start
        assert took < (0.2 if kind.endswith("whole") else 3), (name, kind, took)
    scored += 1
assert not os.listdir(), os.listdir()
print()  # some scorers print
print(json.dumps([scored, refused]))
"""


LONG = {name: text for name, text in ANSWERS.items() if len(text) > 10**5}


def test_X03_reasoning_gym_executes_no_answer_either(tmp_path, environment):
    """Every task of it: what scores by running the answer, or anything, is refused."""
    more = {"list": "[" * 60_000, "factorial": "factorial(99999999)"}
    more |= {name: text[:60_000] for name, text in ANSWERS.items()}  # and whole:
    more |= {f"{name}, whole": text for name, text in LONG.items()}
    done = subprocess.run(
        [sys.executable, "-c", GYM, str(tmp_path)],
        **dict(input=json.dumps(more), capture_output=True, text=True),
        **dict(env=environment | {"PYTHONPATH": str(ROOT / "examples")}),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scored, refused = json.loads(done.stdout.splitlines()[-1])
    code = [x for x in refused if "runs answers as code, which is refused" in x]
    assert scored > 80 and len(code) >= 10 and len(refused) <= 15
    assert any("game_of_life_halting: any text" in x for x in refused)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_X04_no_example_starts_a_program(path):
    """Nothing that a model wrote can: there is no shell, and no interpreter, to ask."""
    assert not starts(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "os.system(text)",
        "os.popen(text)",
        "os.execv(path, [path])",
        "os.spawnl(0, text)",
        "from os import execvp",
    ],
)
def test_X04_the_check_itself_can_fail(source):
    assert starts(source)


def test_X01_a_checkpoint_that_misdescribes_itself(tmp_path):
    """Orbax reads the descriptions of all of them when it opens the folder."""
    kept = Checkpoints(tmp_path / "run", {})
    kept.save(1, {"x": jnp.ones(3)})
    kept.close()
    path = tmp_path / "run" / "1" / "_CHECKPOINT_METADATA"
    sound = json.loads(path.read_text())
    path.write_text(json.dumps(sound | {"custom_metadata": 3}))
    with pytest.raises(ValueError, match=f"a checkpoint in {tmp_path}/run is damaged"):
        Checkpoints(tmp_path / "run", {})
    path.write_text(json.dumps(sound))
    path.with_name("meta").joinpath("metadata").write_text("{}")
    kept = Checkpoints(tmp_path / "run", {})
    with (
        pytest.warns(UserWarning, match="checkpoint 1 is damaged"),
        pytest.raises(ValueError, match=rf"the checkpoints \[1\] in {tmp_path}/run"),
    ):
        kept.restore({"x": jnp.ones(3)})
    kept.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "int32", "uint32"])
def test_T05_a_flipped_bit_changes_the_checksum(dtype):
    """Any bit of an array: a bit of its file that is not seen changes no number."""
    for shape in ((), (3, 5)):
        x = jax.random.uniform(jax.random.key(3), shape, maxval=200).astype(dtype)
        bits = np.unpackbits(np.asarray(x).reshape(-1).view(np.uint8))
        flipped = np.packbits(bits ^ np.eye(bits.size, dtype=np.uint8), axis=1)
        flipped = flipped.view(x.dtype).reshape(-1, *x.shape)
        sums = jax.vmap(_sum_of_bits)(jnp.asarray(flipped))
        assert len(flipped) == 8 * x.nbytes
        assert np.all(sums != _sum_of_bits(x))


def test_T06_options_of_a_checkpoint(tmp_path):
    """Others are refused by name; one that is new since has been stated."""
    state = {"x": jnp.ones(3)}
    kept = Checkpoints(tmp_path / "run", {"gamma": 0.98, "gone": 1})
    kept.save(1, state)
    kept.close()
    for options, message in [
        ({"gamma": 0.5, "gone": 1}, "with gamma = 0.98, not 0.5"),
        ({"gamma": 0.98}, "with gone = 1, not None"),
    ]:
        kept = Checkpoints(tmp_path / "run", options)
        with pytest.raises(ValueError, match=message):
            kept.restore(state)
        kept.close()
    kept = Checkpoints(tmp_path / "run", {"gamma": 0.98, "gone": 1, "new": 2})
    assert kept.restore(state)[0] == 1
    kept.close()


def test_T09_saved_twice_is_saved_once(tmp_path, monkeypatch):
    """A run that is stopped where it was resumed: what is there is not touched."""
    state = {"x": jnp.ones(3)}
    kept = Checkpoints(tmp_path / "run", {})
    kept.save(1, state)
    monkeypatch.setattr(kept._manager, "save", lambda *a, **k: False)
    kept.save(1, state)
    with pytest.raises(OSError, match=r"Checkpoints \[1\] are intact"):
        kept.save(2, state)
    assert kept.restore(state)[0] == 1
    kept.close()
