"""Runs are killed, stopped, starved, damaged and lied to; what is left of them?

    python benchmarks/reliability/survival.py          # about an hour of two cores
    python benchmarks/reliability/survival.py --quick  # each fault once

CartPole and the language model, in processes as a user starts them. After each fault
the run is resumed, and must end as the one that nothing happened to: every number of
its metrics, and the weights of the language model, bit for bit. Work lost is counted in
lines of metrics that had to be made again. Leaves survival.json and a table.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

sys.path.extend(
    str(pathlib.Path(__file__).parents[2] / part)
    for part in ("benchmarks", "tests", "examples")
)
import measure
import processes
from common.checkpoints import Checkpoints
from control import environments, training

ROOT = pathlib.Path(__file__).parents[2]
PLANTED = ROOT / "tests/faults/planted.py"
SMALL = {
    "cartpole": [
        *("--total-steps=24000", "--num-envs=4", "--num-evals=11"),
        "--normalise-obs",
    ],
    "train_llm": [
        *("--model=tiny", "--task=digits", "--num-updates=8", "--save-every=2"),
        *("--prompts-per-update=4", "--group-size=4", "--eval-prompts=4"),
        *("--algorithm=ppo", "--kl-coef=0.1", "--learning-rate=1e-3"),
    ],
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How often."""

    kills: int = 50
    """kill -9, of each example."""
    terms: int = 20
    """SIGTERM, of each example."""
    flips: int = 200
    """Bytes flipped in a checkpoint; half as many truncations and deletions."""
    seed: int = 0
    """Of the moments and the bytes."""
    examples: tuple[str, ...] = tuple(SMALL)
    """Which."""
    faults: tuple[str, ...] = ()
    """Which, such as "kill -9"; all if none is named."""
    quick: bool = False
    """Each fault once, or little more."""
    out: pathlib.Path = pathlib.Path("runs/survival")
    """Folder for the table; what is in it of other faults stays."""


@dataclasses.dataclass
class Row:
    """What came of a fault."""

    example: str
    fault: str
    expected: str
    tried: int = 0
    survived: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def count(self, survived: bool, note: str, lost: int | None = None) -> None:
        self.tried, self.survived = self.tried + 1, self.survived + survived
        self.notes[note] += 1
        if lost is not None:
            self.lost.append(lost)


Fault = Callable[["Example", Options, random.Random, Row], None]


class Example:
    """One of the examples, and what it comes to when nothing happens to it."""

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self.args, self.folder = name, SMALL[name], folder
        folder.mkdir()
        self.environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        self.count = 0
        whole = self.new()
        self.run("--out", whole, *self.args)
        start = time.monotonic()  # with what was compiled kept
        again = self.new()
        self.run("--out", again, *self.args)
        self.seconds = time.monotonic() - start
        self.whole = self.result(whole)
        assert self.result(again) == self.whole, "two runs are not the same"
        self.rows = len(processes.rows(whole))

    def new(self) -> pathlib.Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, *args: Any, fault: str = "", devices: int = 0) -> subprocess.Popen:
        path = [str(PLANTED), fault, self.name] if fault else [self.path]
        flags = f"--xla_force_host_platform_device_count={devices}"
        more = {"XLA_FLAGS": flags} if devices else {}
        return subprocess.Popen(
            [sys.executable, *path, *map(str, args)],
            env=self.environment | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def path(self) -> str:
        return str(ROOT / f"examples/{self.name}.py")

    def run(self, *args: Any, code: int = 0, **how: Any) -> str:
        process = self.start(*args, **how)
        said, _ = process.communicate(timeout=1200)
        assert process.returncode == code, said
        return said

    def result(self, out: pathlib.Path) -> Any:
        """All that a clock did not write."""
        policy = out / "policy" / "model.safetensors"
        weights = policy.read_bytes() if policy.exists() else b""
        return json.dumps(processes.rows(out)), weights

    def resumed(self, out: pathlib.Path) -> bool:
        """Whether it ends, resumed, as if nothing had been."""
        self.run("--resume", out)
        return self.result(out) == self.whole

    def kept(self, out: pathlib.Path) -> list[int]:
        """Checkpoints that are whole, by rows."""
        names = [x.name for x in (out / "checkpoints").glob("*") if x.name.isdigit()]
        name = {"cartpole": "step", "train_llm": "update"}[self.name]
        steps = [row[name] for row in read_rows(out)]
        return [steps.index(int(x)) + 1 for x in names if int(x) in steps]


def main(o: Options) -> None:
    """Every fault, then the table."""
    if o.quick:
        o = dataclasses.replace(o, kills=2, terms=1, flips=8)
    o.out.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in o.examples:
            example = Example(name, pathlib.Path(folder) / name)
            rng = random.Random(o.seed)
            for name, (expected, fault) in FAULTS.items():
                if not o.faults or name in o.faults:
                    row = Row(example.name, name, expected)
                    fault(example, o, rng, row)
                    if row.tried:
                        found.append(row)
                        write(found, o.out)
    print("written:", *write(found, o.out))


def killed(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    interrupted(e, o.kills, rng, row, signal.SIGKILL)


def terminated(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    interrupted(e, o.terms, rng, row, signal.SIGTERM)


def interrupted(
    e: Example, times: int, rng: random.Random, row: Row, number: signal.Signals
) -> None:
    """A run that is interrupted over and over, resumed each time; then the next run."""
    bar = tqdm(total=times, desc=f"{e.name} {number.name}")
    out, runs = e.new(), 0
    pending: list[tuple[str, int]] = []
    while row.tried + len(pending) < times:
        first = not (out / "config.json").exists()
        process = e.start(*(("--out", out, *e.args) if first else ("--resume", out)))
        began = time.time()
        in_write = number == signal.SIGKILL and rng.random() < 0.5
        deadline = time.monotonic() + rng.uniform(0.05, 1.0) * e.seconds
        wait(process, out, deadline, began if in_write else None)
        before = len(read_rows(out))
        writing = is_written(out, began)
        if process.poll() is None and number == signal.SIGTERM:
            wait_for_rows(process, out, before + 1)  # it holds the signal back by now
        process.send_signal(number)
        said, _ = process.communicate(timeout=300)
        if process.returncode == 0:  # it had ended already, or was about to
            same = e.result(out) == e.whole
            for note, lost in pending:
                row.count(same, note if same else "not the same run", lost)
            bar.update(len(pending))
            pending, out, runs = [], e.new(), runs + 1
            continue
        assert process.returncode in (-9, 143), said
        lines = len(read_rows(out))
        lost = lines - max(e.kept(out), default=0)
        if number == signal.SIGTERM and lost:
            pending.append(("work lost", lost))
        else:
            pending.append(("while it wrote" if writing else "between", lost))
    same = e.resumed(out) if (out / "config.json").exists() else True
    for note, lost in pending:
        row.count(same, note if same else "not the same run", lost)
    bar.update(len(pending))
    bar.close()


def wait(
    process: subprocess.Popen, out: pathlib.Path, moment: float, writes: float | None
) -> None:
    """Until a moment, or the first one after it at which a checkpoint is written."""
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.002)
    end = time.monotonic() + 120
    while writes and process.poll() is None and time.monotonic() < end:
        if is_written(out, writes):
            return
        time.sleep(0.0005)


def is_written(out: pathlib.Path, since: float) -> bool:
    """Whether a checkpoint is being written, and was not left unfinished earlier."""
    with contextlib.suppress(FileNotFoundError):
        now = (out / "checkpoints").glob("*tmp*")
        return any(x.stat().st_ctime > since for x in now)
    return False


def wait_for_rows(process: subprocess.Popen, out: pathlib.Path, count: int) -> None:
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if len(read_rows(out)) >= count:
            return
        time.sleep(0.002)


def read_rows(out: pathlib.Path) -> list[dict[str, Any]]:
    """Whole lines of metrics."""
    path = out / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def full(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """A disk of a few hundred kilobytes (of Linux, as root); then there is room."""
    for kib in (200, 700) if e.name == "cartpole" else (4000, 9000):
        with tempfile.TemporaryDirectory() as disk:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk]
            if subprocess.run(mount, capture_output=True).returncode:
                return
            try:
                out = pathlib.Path(disk) / "run"
                process = e.start("--out", out, *e.args)
                said, _ = process.communicate(timeout=600)
                clear = "could not be written" in said or "No space left" in said
                lost = len(read_rows(out)) - max(e.kept(out), default=0)
                room = [*mount[:4], f"remount,size={100 * kib}k", *mount[5:]]
                subprocess.run(room, check=True)
                begun = (out / "config.json").exists()
                same = e.resumed(out) if begun else True
                row.count(
                    clear and process.returncode == 1 and same, f"{kib} KiB", lost
                )
            finally:
                subprocess.run(["umount", "-l", disk], check=True)


def starved(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Too little memory to go on (an address space that ends)."""
    out = e.new()
    process = e.start("--out", out, *e.args, fault="memory")
    said, _ = process.communicate(timeout=600)
    begun = (out / "config.json").exists()
    ended = process.returncode != 0 and ("emory" in said or "MEMORY" in said)
    lost = len(read_rows(out)) - max(e.kept(out), default=0)
    row.count(ended and (e.resumed(out) if begun else True), "ended", lost)


def damaged(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """A bit of the newest checkpoint flipped, a file of it cut short or gone."""
    if e.name != "cartpole":  # it is the checkpoints that are looked at
        return
    whole, copy, options = e.new(), e.new(), {"gamma": 0.98}
    kept, runs = Checkpoints(whole, options), {}
    init = training.trainer(environments.cartpole(), training.PPO()).init
    for step in (1, 2, 3):
        runs[step] = init(jax.random.key(step))
        kept.save(step, runs[step])
    kept.close()
    kinds = ["flipped"] * o.flips + ["cut short", "deleted"] * (o.flips // 2)
    for kind in tqdm(kinds, desc="damage"):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        files = [x for x in sorted((copy / "3").rglob("*")) if x.is_file()]
        sizes = [x.stat().st_size for x in files]
        by_size = rng.random() < 0.5  # else the few bytes that say what is where
        (file,) = rng.choices(files, sizes if by_size else None)
        content = bytearray(file.read_bytes())
        if kind == "deleted":
            file.unlink()
        elif kind == "cut short":
            file.write_bytes(content[: rng.randrange(max(len(content), 1))])
        elif content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
        kept = Checkpoints(copy, options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step, found = kept.restore(runs[1])
        kept.close()
        right = same(found, runs[step])
        told = step == 3 or any("is damaged" in str(x.message) for x in said)
        note = {3: "no harm", 2: "the one before", 1: "the one before that"}[step]
        row.count(right and told, f"{kind}: {note}" if right else "WRONG", 3 - step)


def same(x: Any, y: Any) -> bool:
    """Bit for bit."""
    data = lambda x: jax.random.key_data(x) if keys(x) else x
    keys = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(data(x), data(y)) for x, y in pairs)


def elsewhere(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Begun on one device, continued on two, on four, and on one again."""
    meshes = {
        "cartpole": ("envs=2", "envs=4"),
        "train_llm": ("data=2", "data=2,fsdp=2"),
    }
    out = e.new()
    process = e.start("--out", out, *e.args)
    wait_for_rows(process, out, 2)
    process.kill()
    process.communicate()
    done = [len(read_rows(out))]
    for mesh, devices in zip(meshes[e.name], (2, 4), strict=True):
        process = e.start("--resume", out, "--mesh", mesh, devices=devices)
        wait_for_rows(process, out, done[-1] + 2)
        process.kill()
        process.communicate()
        done.append(len(read_rows(out)))
    e.run("--resume", out)
    rows, wanted = processes.rows(out), json.loads(e.whole[0])
    # The first line of other devices: what is rounded otherwise grows after that.
    first, want = rows[done[0]], wanted[done[0]]
    far = max(
        float(np.max(np.abs(np.subtract(first[k], want[k]))))
        for k in ("entropy", "approx_kl", "policy_loss")
        if k in first
    )
    good = far < 1e-4 and len(rows) == len(wanted)
    row.count(good, f"entropy, KL and loss of the next update within {far:.1g}")
    three = meshes[e.name][0].replace("2", "3")
    said = e.run("--resume", out, "--mesh", three, devices=3, code=1)
    row.count("Fix" in said or "expected" in said, "3 devices: refused")


def changed(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Resumed with another option: on the command line, in the file, in the code."""
    out = e.new()
    process = e.start("--out", out, *e.args)
    wait_for_rows(process, out, 3)
    process.kill()
    process.communicate()
    config, before = (
        (out / "config.json").read_text(),
        (out / "metrics.jsonl").read_text(),
    )
    said = e.run("--resume", out, "--gamma=0.5", code=1)
    row.count("that run has gamma" in said, "on the command line")
    for note, changes in {
        "in the file": {"gamma": 0.5},
        "in the code: one less": {"of_a_later_version": 1},
    }.items():
        new = json.dumps(json.loads(config) | changes)
        (out / "config.json").write_text(new)
        said = e.run("--resume", out, code=1)
        row.count(any(name in said for name in changes), note)
    (out / "config.json").write_text(config[:100])
    said = e.run("--resume", out, code=1)
    row.count("no run to continue" in said, "the file cut short")
    (out / "config.json").write_text(config)
    row.count((out / "metrics.jsonl").read_text() == before, "metrics as they were")
    row.count(e.resumed(out), "put back: the same run")


def bereft(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """One of two processes is killed; the other must not wait for ever."""
    mesh = {"cartpole": "--mesh=envs=2", "train_llm": "--mesh=data=2"}[e.name]

    def pair(*args: Any) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        each = [address, "--processes=2", mesh, *args]
        return [e.start(*each, f"--process={i}") for i in range(2)]

    for number in (signal.SIGKILL, signal.SIGTERM):
        for which in (0, 1):
            out = e.new()
            both = pair("--out", out, *e.args)
            wait_for_rows(both[0], out, 3)
            start = time.monotonic()
            both[which].send_signal(number)
            said, _ = both[1 - which].communicate(timeout=400)
            seconds, code = time.monotonic() - start, both[1 - which].returncode
            both[which].communicate(timeout=400)
            lines = len(read_rows(out))
            lost = lines - max(e.kept(out), default=0)
            if number == signal.SIGTERM:
                good = [x.returncode for x in both] == [143, 143] and lost == 0
            else:
                clear = "another one has ended" in said or "another task died" in said
                good = code not in (0, None) and seconds < 100 and clear
            again = pair("--resume", out)
            ends = [x.communicate(timeout=1200)[0] for x in again]
            resumed = [x.returncode for x in again] == [0, 0]
            assert resumed, ends
            whole = len(processes.rows(out)) == e.rows
            note = f"{number.name} to {which}: the other ends in {seconds:.0f} s"
            row.count(good and whole, note, lost)


def planted(fault: str, check: Callable[[list, str, int], bool]) -> Fault:
    """A fault of `tests/faults/planted.py`; what the rows and the output must show."""

    def one(e: Example, o: Options, rng: random.Random, row: Row) -> None:
        only = {"environment": "cartpole", "dead": "cartpole", "reward": "train_llm"}
        if only.get(fault, e.name) != e.name:
            return
        out = e.new()
        more = ["--reward-seconds=0.5"] if fault == "reward" else []
        process = e.start("--out", out, *e.args, *more, fault=fault)
        said, _ = process.communicate(timeout=1200)
        rows = processes.rows(out)
        same = fault != "clock" or e.result(out) == e.whole
        row.count(check(rows, said, process.returncode) and same, "as expected", 0)

    return one


def sums(rows: list, name: str) -> float:
    return float(np.sum([row[name] for row in rows]))


FAULTS: dict[str, tuple[str, Fault]] = {
    "kill -9": ("resumed, the same run", killed),
    "SIGTERM": ("saves, leaves with 143; resumed, the same run", terminated),
    "disk full": ("a clear error; with room made, the same run", full),
    "memory full": ("ends with an error; resumed, the same run", starved),
    "checkpoint damaged": ("the one before, with a warning; or no harm", damaged),
    "other devices": ("the same run, to rounding", elsewhere),
    "options changed": ("refused by name, and nothing touched", changed),
    "one of two dies": ("the other ends in 100 s; the pair resumes", bereft),
    "environment breaks at times": (
        "the steps are left out and counted; goes on",
        planted(
            "environment",
            lambda rows, said, code: code == 0 and 0 < sums(rows, "left_out") < 1,
        ),
    ),
    "environment only breaks": (
        "ends with a clear error",
        planted(
            "dead",
            lambda rows, said, code: code == 1 and "Look at the environment" in said,
        ),
    ),
    "loss is NaN for 3 steps": (
        "skipped and counted; goes on",
        planted(
            "loss", lambda rows, said, code: code == 0 and sums(rows, "skipped") > 0
        ),
    ),
    "rewards raise, hang, die, are NaN": (
        "the samples are left out and counted; goes on",
        planted(
            "reward",
            lambda rows, said, code: code == 0 and sums(rows, "failed_rewards") > 0,
        ),
    ),
    "clock jumps": (
        "the same run",
        planted("clock", lambda rows, said, code: code == 0),
    ),
}


def write(found: list[Row], out: pathlib.Path) -> list[pathlib.Path]:
    """The table, so far."""
    rows = [
        {
            "example": row.example,
            "fault": row.fault,
            "expected": row.expected,
            "tried": row.tried,
            "survived": row.survived,
            "rows lost, median": float(np.median(row.lost)) if row.lost else 0.0,
            "most": max(row.lost, default=0),
            "seen": ", ".join(f"{n} {note}" for note, n in row.notes.items()),
        }
        for row in found
    ]
    of = lambda row: (row["example"], row["fault"])
    before = out / "survival.json"
    kept = json.loads(before.read_text()) if before.exists() else []
    merged = {of(row): row for row in [*kept, *rows]}
    order = [(e, fault) for e in SMALL for fault in FAULTS]
    rows = [merged[x] for x in order if x in merged]
    table = measure.table(rows, rows[0])
    made_by = f"jaxppo's examples, in processes; {measure.machine()}."
    return measure.write(out, "survival", f"{made_by}\n\n{table}", rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
