"""Writes docs/reliability.md from tests/faults/: the table, and the tests by name.

python docs/reliability.py
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
from faults.hostile import FEW, RUNS
from faults.rows import GROUPS, ROWS, Row

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"
FAULTS = ROOT / "tests/faults"
RESULTS = ROOT / "benchmarks/results"
HEAD = """\
<!-- Written by docs/reliability.py from tests/faults/table.txt: change that. -->
# What was thrown at it

{rows} faults that make losses infinite, NaN or quietly wrong, what happens here, and
what peers were seen to do with the same. {proven} are proven whole by tests, {partly}
in part, {open} not at all: the last column says what is missing.
`python3 run.py test tests/faults` runs the tests that carry a row's name.

The peers' column was observed by running their own functions on a CPU, or is an issue
of theirs: verl 0.9.1, TRL 1.16.0, OpenRLHF 0.11.2, TorchRL 0.14.1, Liger 0.8.5, AReaL
1.0.4, NeMo-RL at 7ea279abf, Tunix 0.1.7, rlax 0.1.9, optax 0.2.8, flax 0.12.8, orbax
0.12.8, torch 2.13, JAX 0.10.2. None of them passes all rows of the first table.

N01 to N09 and N17 are run on everything that takes a log-ratio, its value and, but for
N08 and N17, its gradient, as this table says, not in every combination (`RUNS` in
`tests/faults/hostile.py`). Only the policy terms go through the other log-ratios than
the token's, and N17 does not; of N01, N02 and N04 they are seen to be finite there, the
token's numbers are exact. Eager are {eager} alone, on {few} of the
bad batches. None of it is sharded; D01 and D03 are.

| log-ratio | dtype | run |
|---|---|---|
{runs}

Three lines are drawn on purpose. What is masked has no influence at all. A valid
log-ratio of any size is finite. A valid NaN is never hidden: it is in the loss, and the
learner skips that step and counts it.
"""


MEASURED = [
    (
        "The programme",
        "reliability",
        """\
What a trusted library of losses should have been through, as we set it for ourselves
beforehand, and what was done. `python benchmarks/reliability/table.py` prints it.
""",
    ),
    (
        "Runs that survive",
        "survival",
        """\
CartPole and the language model, in real processes. A run that a fault ended is resumed,
and must end as the run that nothing happened to, bit for bit; on other devices the next
line of metrics is the same to rounding. What goes on by itself, or cannot go on, is not
resumed, nor is "checkpoints damaged", whose state is compared without a run. Lines lost
are left empty where they were not counted.
`python benchmarks/reliability/survival.py` does it again.
""",
    ),
    (
        "A long run",
        "soak",
        """\
A million updates and ten thousand checkpoints. Memory of the updates does not grow.
That of checkpoints does, by 21 kB each: it is Orbax's own (0.12.8, tensorstore 0.1.86:
20 kB a save without us, of arrays of JAX; 0.2 kB of JSON alone).
`python benchmarks/reliability/soak.py` does it again.

![memory and time of updates and checkpoints](soak.png)
""",
    ),
    (
        "Elsewhere",
        "platforms",
        """\
The same functions on the same batches, in float32, elsewhere. Differences are in units
of float32's epsilon, of the largest number of an array. On one machine and version the
same program gives the same bits each time; other devices, versions and
compilers round otherwise. `python benchmarks/reliability/platforms.py` does it again.
""",
    ),
]


def named(row: Row) -> list[str]:
    """The tests of a row: those that carry its name, and those it names."""
    found = []
    for path in sorted(FAULTS.glob("test_*.py")):
        names = re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
        found += [f"faults/{path.name}::{n}" for n in names if f"_{row.id}_" in n]
    return [*found, *row.tests]


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def links(row: Row) -> str:
    """The tests, each a link to its file."""
    out = []
    for test in named(row):
        file, name = test.split("::")
        out.append(f"[{name.removeprefix('test_')}](../tests/{file})")
    return "<br>".join([*out, *([f"*open: {row.open}*"] if row.open else [])])


def page() -> str:
    """The page."""
    whole = sum(not row.open for row in ROWS)
    none = sum(bool(row.open) and not named(row) for row in ROWS)
    counts = dict(rows=len(ROWS), proven=whole, open=none)
    counts |= dict(partly=len(ROWS) - whole - none)
    counts |= dict(few=sum(name != "clean" for name in FEW))
    counts |= dict(runs="\n".join(f"| {' | '.join(run)} |" for run in RUNS))
    numeric = (FAULTS / "test_numeric.py").read_text("utf-8")
    eager = re.findall(r"@each_(?:token_)?run\ndef test_(N\d\d)", numeric)
    counts |= dict(eager=" and ".join([", ".join(eager[:-1]), eager[-1]]))
    out = [HEAD.format(**counts)]
    for group, title in GROUPS.items():
        out += [
            f"## {title}\n",
            "| | fed | jaxppo | peers | tests |",
            "|---|---|---|---|---|",
        ]
        for row in (row for row in ROWS if row.id[0] == group):
            cells = [
                row.id,
                *map(cell, (row.fed, row.ours or "-", row.peers)),
                links(row),
            ]
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    for title, name, text in MEASURED:
        if not (RESULTS / f"{name}.md").exists():
            continue  # not measured yet
        table = (RESULTS / f"{name}.md").read_text("utf-8").strip()
        table = re.sub(r"\]\((?=\w+\.md\))", "](../benchmarks/results/", table)
        lines = [line for line in table.splitlines() if line.startswith("|")]
        out += [f"## {title}\n", text, *lines, ""]
    return "\n".join(out)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
