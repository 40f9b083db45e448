"""Writes a file of reference values on fresh inputs: `python -m parity.live --help`."""

import argparse
import json
from collections import Counter
from pathlib import Path

from parity.live.inputs import draw
from parity.live.systems import reference


def options():
    """Of the command line."""
    parser = argparse.ArgumentParser("parity.live", description=__doc__)
    parser.add_argument("--inputs", type=Path, help="a file, in place of a seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--time", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--extreme", type=float, default=0.0)
    parser.add_argument("--empty-rows", type=int, default=0)
    parser.add_argument("--ties", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main():
    """Runs everything; says what ran and what did not."""
    chosen = vars(options())
    path, dtype, out = (chosen.pop(name) for name in ("inputs", "dtype", "out"))
    inputs = json.loads(path.read_text("utf-8"))["inputs"] if path else draw(**chosen)
    result = reference(inputs, dtype)
    out.write_text(json.dumps(result), "utf-8")
    for system, count in Counter(n.split("/")[0] for n in result["outputs"]).items():
        print(f"{system:10}{count:4}")
    for name, why in result["skipped"].items():
        print(f"could not run {name}: {why}")


if __name__ == "__main__":
    main()
