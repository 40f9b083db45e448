#!/usr/bin/env python3
"""The one tool: makes the environment that a command needs, once, and runs it.

Asks for Python 3.11 or newer, nothing else. `python3 run.py` lists the commands.
"""

import ast
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

VERSION = "{}.{}".format(*sys.version_info)
ROOT = Path(__file__).resolve().parent
EXAMPLES = {path.stem: path for path in sorted(ROOT.glob("examples/*.py"))}
TOOLS = {
    "lint": ["ruff format --check", "ruff check", "pyrefly check"],
    "fix": ["ruff check --fix", "ruff format"],
    "audit": [
        "pip_audit --strict --vulnerability-service osv",
        "pytest -n0 tests/test_supply_chain.py",
    ],
    "docs": ["sphinx -E -W --keep-going -n docs docs/_build/html"],
}
TESTS = {
    "test": [],
    "test-floor": [],
    "test-compiled": ["tests/compiled", "-rs", "-n0"],  # one process may have libtpu
    "test-live": ["tests/parity", "tests/test_tunix.py", "-rs"],
    "test-hf": ["tests/hf", "-rs"],
}
SMOLLM2 = "examples/llm/*.txt"
MORE = {
    "": SMOLLM2,
    "floor": SMOLLM2,
    "hf": f"{SMOLLM2} tests/hf/*.txt",
    "compiled": "tests/compiled/*.txt",
    "live": "tests/parity/live/*.txt",
}
HELP = """\
usage: python3 run.py COMMAND [ARGUMENT ...]

examples (each has its own --help):
{examples}

for work on jaxppo itself:
  test          run the tests; arguments go to pytest: test -k kl -x
  test-floor    the same on the oldest versions we support (constraints/floor.txt)
  test-compiled measure the memory that a GPU and a TPU would need, by their compilers
                (350 MB; neither has to be there)
  test-live     compare the recipes with verl, TRL, ... themselves, on fresh inputs, and
                train in Tunix; installs torch and them (Python 3.11, 3 GB)
  test-hf       compare the language model and its files with transformers;
                installs torch and it (Python 3.11, 2 GB)
  lint          check formatting, style and types
  fix           mend the formatting and style that can be mended
  audit         compare what is installed with the known vulnerabilities (osv.dev), and
                its licences with those that we allow
  docs          make the site, docs/_build/html/index.html; a warning is an error

The first use of a command makes .venv/ and installs what it needs; later ones start at
once. A Python other than the one that made .venv/ gets its own, such as .venv-3.13/."""


def main(command: str = "help", *args: str) -> None:
    """Run one command, and exit with its exit code."""
    if command in EXAMPLES:
        become(environment("examples"), str(EXAMPLES[command]), *args)
    elif command in TESTS:
        python = environment("tests", command.partition("-")[2])
        os.chdir(ROOT)
        become(python, "-m", "pytest", *TESTS[command], *args)
    elif command in TOOLS:
        python = environment("lint" if command == "fix" else command)
        tools = [[python, "-m", *tool.split()] for tool in TOOLS[command]]
        sys.exit(any([subprocess.call(tool, cwd=ROOT) for tool in tools]))  # all run
    elif command in ("help", "-h", "--help"):
        print(HELP.format(examples="\n".join(map(summary, EXAMPLES))))
    else:
        fail(2, f"no command {command!r}; `python3 run.py` lists them.")


def summary(example: str) -> str:
    """An example's line in the help: the first of its docstring."""
    module = ast.parse(EXAMPLES[example].read_text("utf-8"))
    return f"  {example:13} {(ast.get_docstring(module) or '').partition(chr(10))[0]}"


def environment(extra: str, kind: str = "") -> str:
    """The Python of a virtual environment that has jaxppo[extra], made if need be."""
    home = place(f".venv-{kind}" if kind else ".venv")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = [ROOT / "constraints" / "floor.txt"] if kind == "floor" else []
    more = [f for where in MORE[kind].split() for f in sorted(ROOT.glob(where))]
    files = [f.read_text("utf-8") for f in [ROOT / "pyproject.toml", *pins, *more]]
    made_of = "\0".join([sys.version, str(ROOT), *files])
    key = hashlib.sha256(made_of.encode()).hexdigest()

    stamp = home / ".jaxppo"  # the key, then the extras that are in
    words = stamp.read_text().split() if python.exists() and stamp.exists() else []
    extras = words[1:] if words[:1] == [key] else []
    if extra not in extras:
        extras.append(extra)
        what = f"[{','.join(extras)}]"
        print(f"Setting up {home.name}/: jaxppo{what} for Python {VERSION}.")
        print("The first time takes a minute or two, and about 1 GB.", flush=True)
        stamp.unlink(missing_ok=True)
        clear = [] if python.exists() else ["--clear"]  # half made, or its Python went
        step(sys.executable, "-m", "venv", *clear, str(home))
        options = [f"--editable={ROOT}{what}", *(f"--constraint={pin}" for pin in pins)]
        step(str(python), "-m", "pip", "install", *options)
        for file in more:  # "requirements-no-deps.txt", "requirements.txt"
            alone = ["--no-deps"] if "no-deps" in file.stem else []
            step(str(python), "-m", "pip", "install", *alone, "-r", str(file))
        stamp.write_text(" ".join([key, *extras]))  # last: what is cut short is redone
    return str(python)


def place(name: str) -> Path:
    """Where the environment is: the Python that came first has the short name."""
    config = ROOT / name / "pyvenv.cfg"
    text = config.read_text("utf-8") if config.exists() else ""
    made_by = re.search(r"^version.* = (\d+\.\d+)", text, re.MULTILINE)
    return ROOT / (f"{name}-{VERSION}" if made_by and made_by[1] != VERSION else name)


def step(*command: str) -> None:
    """One step of the set-up; without it there is no going on."""
    code = subprocess.call(command)
    if code:
        hint = "Debian and Ubuntu keep venv apart: apt install python3-venv"
        failed = [f"exit code {code} from", f"  {shlex.join(command)}"]
        fail(code, "\n".join([*failed, hint] if "venv" in command else failed))


def become(*command: str) -> None:
    """Run a command in this one's place: its signals and exit code are ours."""
    if os.name == "nt":  # where exec gives the prompt back at once
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


def fail(code: int, message: str) -> None:
    """Say what is wrong, and exit."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        fail(1, f"this is Python {VERSION}; jaxppo needs 3.11 or newer.")
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        fail(130, "interrupted; the same command takes it up again.")
