"""Damages a model's file in many ways; each must end in a ValueError that names it.

python tests/llm_fuzz.py MODEL FILE, in a process with little memory and little time.
"""

import random
import resource
import signal
import sys
from pathlib import Path

import jax
from llm import tiny, weights


def limit_memory():
    """A GiB more than what is taken now, on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        size = int(status.read_text().split("VmSize:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)


def shapes():
    """Of the matrices and norms in the layers of a tiny model."""
    found = {}
    for layer in "01":
        for part in weights.LAYER.values():
            name = f"model.layers.{layer}.{part}.weight"
            if "q_norm" not in name and "k_norm" not in name:
                x = tiny.source().tensor(name)
                found[name] = (x.T if "proj" in name else x).shape
    return found


def is_read(path, file, data) -> bool:
    new = file.with_name("new")  # what is open is mapped: it must not shrink
    new.write_bytes(data)
    new.replace(file)
    try:
        source = weights.read(path)
        for name, shape in SHAPES.items():
            weights._tensor(source, name, shape)
    except ValueError as error:
        assert str(path) in str(error), error
        assert not isinstance(error.__cause__, MemoryError), error
        return False
    return True


def main(path, file):
    whole, rng, survived = file.read_bytes(), random.Random(0), 0
    assert is_read(path, file, whole)
    for n in [*range(0, 64), *rng.sample(range(64, len(whole)), 60)]:
        assert not is_read(path, file, whole[:n])
    for _ in range(400):
        data = bytearray(whole)
        at = rng.randrange(min(len(whole), 9000))
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        else:  # a count that is huge
            count = rng.choice([2**63 - 1, 2**40, 2**64 - 1, 0])
            data[at : at + 8] = count.to_bytes(8, "little")
        survived += is_read(path, file, bytes(data[: len(whole)]))
    print("survived", survived)


SHAPES = shapes()
if __name__ == "__main__":
    signal.alarm(480)
    jax.block_until_ready(jax.numpy.ones(3) + 1)  # its threads are there
    limit_memory()
    path = Path(sys.argv[1])
    main(path, path / sys.argv[2] if path.is_dir() else path)
