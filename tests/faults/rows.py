"""The fault table (`table.txt`): what is fed, what happens here, what peers do.

Observed on the peers' own functions: verl 0.9.1, TRL 1.16.0, OpenRLHF 0.11.2, TorchRL
0.14.1, Liger 0.8.5, AReaL 1.0.4, NeMo-RL at 7ea279abf, Tunix 0.1.7, rlax 0.1.9, optax
0.2.8, flax 0.12.8, orbax 0.12.8, distrax, purejaxrl; on torch 2.13 and JAX 0.10.2, CPU.

A row is proven by the tests in this folder that carry its id, `test_N01_...`, and by
those it names in `tests`; `open` says what no test proves yet.
"""

from pathlib import Path
from typing import NamedTuple

GROUPS = {
    "N": "Numbers",
    "S": "Shapes",
    "H": "Hyper-parameters",
    "D": "Devices and microbatches",
    "T": "Training",
    "X": "Files and security",
}


class Row(NamedTuple):
    """One fault."""

    id: str
    fed: str
    ours: str
    peers: str
    tests: tuple[str, ...] = ()
    open: str = ""


# A line a row: id | fed | ours | peers | tests elsewhere | what is open
TABLE = Path(__file__).with_name("table.txt")


def _row(line: str) -> Row:
    # "\\|" is a bar of the text
    cells = [x.strip() for x in line.replace("\\|", "\0").split("|")]
    name, fed, ours, peers, tests, gap = (x.replace("\0", "|") for x in cells)
    return Row(name, fed, ours, peers, tuple(tests.split()), gap)


ROWS = [_row(line) for line in TABLE.read_text("utf-8").splitlines()]
