"""Runs are killed, stopped, starved, damaged and lied to; what is left of them?

    python benchmarks/reliability/survival.py          # an hour and a half of two cores
    python benchmarks/reliability/survival.py --quick  # each fault once
    python benchmarks/reliability/survival.py --faults "kill -9" --examples cartpole

CartPole and the language model, in processes as a user starts them. A run that a fault
ended is resumed, and must end as the one that nothing happened to: every number of its
metrics, and the weights of the language model, bit for bit. On other devices the next
line must be the same to rounding. A run that goes on by itself, or cannot, is not
resumed: its metrics and its output are looked at. Of "checkpoints damaged" there is no
run, the state alone. Work lost, where it is counted, is in lines of metrics that had to
be made again. Leaves survival.json and a table.
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

SMALL = {
    "cartpole": [
        *("--total-steps=12288", "--num-envs=4", "--num-evals=24"),  # every update
        "--normalise-obs",
    ],
    "train_llm": [
        *("--model=tiny", "--task=digits", "--num-updates=8", "--save-every=2"),
        *("--prompts-per-update=4", "--group-size=4", "--eval-prompts=4"),
        *("--algorithm=ppo", "--kl-coef=0.1", "--learning-rate=1e-3"),
    ],
}
STEP = {"cartpole": "step", "train_llm": "update"}  # what numbers a line of metrics
MINIBATCHES = {"cartpole": 10 * 8, "train_llm": 2}  # of an update, and of a line
MESHES = {
    "cartpole": ("envs=2", "envs=4", "envs=3"),  # the last divides nothing
    "train_llm": ("data=2", "data=2,fsdp=2", "data=3"),
}
PATIENCE = 1200  # seconds; what takes longer hangs


@dataclasses.dataclass(frozen=True)
class Options:
    """How often."""

    kills: int = 50
    """kill -9, of each example."""
    terms: int = 20
    """SIGTERM, of each example."""
    flips: int = 200
    """Bits flipped in a checkpoint; half as many files cut short, and gone."""
    seed: int = 0
    """Of the moments and the bits."""
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
        self.notes[note if survived else f"NOT {note}"] += 1
        if lost is not None:
            self.lost.append(lost)


class Example:
    """One of the examples, and what it comes to when nothing happens to it."""

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self.args, self.folder, self.count = name, SMALL[name], folder, 0
        folder.mkdir()
        self.environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        self.finish(self.start("--out", self.new(), *self.args))  # compiles, for all
        whole = self.new()
        process = self.start("--out", whole, *self.args)
        begin = time.monotonic()
        self.wait_for(process, whole, 1)
        self.start_up = time.monotonic() - begin  # seconds to the first line
        self.finish(process)
        self.learning = time.monotonic() - begin - self.start_up
        self.uninterrupted = result(whole)

    def new(self) -> pathlib.Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, *args: Any, fault: str = "", devices: int = 0) -> subprocess.Popen:
        flags = f"--xla_force_host_platform_device_count={devices}"
        more = {"XLA_FLAGS": flags} if devices else {}
        return processes.start(
            self.environment | more, self.name, *args, fault=fault, group=True
        )

    def finish(self, process: subprocess.Popen, code: int = 0) -> str:
        """All it says; its exit code must be this."""
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        return said

    def wait_for(self, process: subprocess.Popen, out: pathlib.Path, count: int) -> int:
        """Until there are so many lines, or it has ended; how many there are."""
        while process.poll() is None and len(lines(out)) < count:
            time.sleep(0.002)
        return len(lines(out))

    def stopped(self, count: int, out: pathlib.Path, *args: Any, **how: Any) -> int:
        """A run, killed after so many lines; how many of them are kept."""
        process = self.start(*(args or ("--out", out, *self.args)), **how)
        self.wait_for(process, out, count)
        process.kill()
        process.communicate()
        return self.kept(out)

    def resumes(self, out: pathlib.Path, **how: Any) -> bool:
        """Whether it ends, resumed, as if nothing had been."""
        if not (out / "config.json").exists():
            return True  # there was no run yet: there is nothing to resume
        process = self.start("--resume", out, **how)
        process.communicate(timeout=PATIENCE)
        return process.returncode == 0 and result(out) == self.uninterrupted

    def kept(self, out: pathlib.Path) -> int:
        """Lines of metrics that a resumed run need not make again."""
        names = [x.name for x in (out / "checkpoints").glob("*") if x.name.isdigit()]
        saved = {int(x) for x in names}
        at = [i for i, row in enumerate(lines(out)) if row[STEP[self.name]] in saved]
        return max(at, default=-1) + 1

    def lost(self, out: pathlib.Path) -> int:
        """Lines that it must."""
        return len(lines(out)) - self.kept(out)


def result(out: pathlib.Path) -> tuple[str, bytes]:
    """All that a clock did not write."""
    policy = out / "policy" / "model.safetensors"
    rows = json.dumps(processes.rows(out)) if (out / "metrics.jsonl").exists() else ""
    return rows, policy.read_bytes() if policy.exists() else b""


def lines(out: pathlib.Path) -> list[dict[str, Any]]:
    """Whole lines of metrics."""
    path, rows = out / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


Fault = Callable[[Example, Options, random.Random, Row], None]


def main(o: Options) -> None:
    """Every fault, then the table."""
    if o.quick:
        o = dataclasses.replace(o, kills=2, terms=1, flips=8)
    o.out.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in o.examples:
            example = Example(name, pathlib.Path(folder) / name)
            for fault, (expected, only, inflict) in FAULTS.items():
                wanted = not o.faults or fault in o.faults
                if wanted and name in (only or SMALL):
                    row = Row(name, fault, expected)
                    inflict(example, o, random.Random(f"{o.seed} {fault}"), row)
                    found.append(row)
                    write(found, o.out)
    print("written:", *write(found, o.out))


# --- faults ---


def killed(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    interrupted(e, o.kills, rng, row, signal.SIGKILL)


def terminated(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    interrupted(e, o.terms, rng, row, signal.SIGTERM)


def interrupted(
    e: Example, times: int, rng: random.Random, row: Row, number: signal.Signals
) -> None:
    """A run that is interrupted over and over, resumed each time; then the next run."""
    bar = tqdm(total=times, desc=f"{e.name} {number.name}")
    out, pending = e.new(), []

    def ended(same: bool) -> None:
        nonlocal out, pending
        for note, lost in pending:
            row.count(same, note, lost)
        out, pending = e.new(), []

    while row.tried + len(pending) < times:
        begun, began = (out / "config.json").exists(), time.time()
        process = e.start(*(("--resume", out) if begun else ("--out", out, *e.args)))
        before = len(lines(out))
        kind = rng.choices(("starts", "plays or learns", "writes"), (1, 4, 5))[0]
        if number == signal.SIGTERM:
            kind = "plays or learns"  # earlier, there is nothing to save
        if kind == "starts":
            time.sleep(rng.uniform(0, e.start_up))
        else:
            # The file is written anew when a run is resumed.
            while process.poll() is None and not is_newer(out / "metrics.jsonl", began):
                time.sleep(0.002)
            if number == signal.SIGTERM:  # else all come as the first step is compiled
                e.wait_for(process, out, before + rng.randrange(3))
            time.sleep(rng.uniform(0, 0.5 * e.learning))
            while kind == "writes" and process.poll() is None:
                if any(is_newer(x, began) for x in unfinished(out)):
                    time.sleep(rng.uniform(0, 0.02))
                    break
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE)
        if process.returncode == 0 or result(out) == e.uninterrupted:
            ended(result(out) == e.uninterrupted)  # it had learned all there is
            continue
        code = process.returncode  # -15: before there was anything to save
        saved = code in (128 + number, -number) and e.lost(out) == 0
        assert saved or code == -number == -signal.SIGKILL, said
        writing = any(is_newer(x, began) for x in unfinished(out))
        seen = is_newer(out / "metrics.jsonl", began) and len(lines(out)) != before
        note = "as it wrote" if writing else "as it played" if seen else "as it started"
        pending.append((note, e.lost(out)))
        bar.update()
    ended(e.resumes(out))
    bar.close()


def unfinished(out: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that are being written, or were."""
    return list((out / "checkpoints").glob("*tmp*"))


def is_newer(path: pathlib.Path, than: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ctime > than
    return False


def full(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """A small disk (on Linux, as root), at every stage of a run; then there is room."""
    whole = e.new()
    e.finish(e.start("--out", whole, *e.args))
    need = sum(x.stat().st_size for x in whole.rglob("*") if x.is_file()) // 2**10
    for share in (0.1, 0.3, 0.6) if not o.quick else (0.3,):
        with tempfile.TemporaryDirectory() as disk:
            mount = ["mount", "-t", "tmpfs", "tmpfs", disk, "-o"]
            size = int(share * need)
            subprocess.run([*mount, f"size={size}k"], check=True)
            try:
                out = pathlib.Path(disk) / "run"
                process = e.start("--out", out, *e.args)
                said, _ = process.communicate(timeout=PATIENCE)
                clear = "could not be written" in said and "--resume" in said
                ended, lost = process.returncode == 1, e.lost(out)
                subprocess.run([*mount, f"remount,size={9 * need}k"], check=True)
                row.count(clear and ended and e.resumes(out), f"{size} KiB", lost)
            finally:
                subprocess.run(["umount", "-l", disk], check=True)


def starved(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """A device that is asked for more than it has."""
    out = e.new()
    process = e.start("--out", out, *e.args, fault="memory")
    said, _ = process.communicate(timeout=PATIENCE)
    ended, lost = process.returncode == 1 and "Out of memory" in said, e.lost(out)
    row.count(ended and e.resumes(out), "ended", lost)


def damage(kind: str, checkpoint: pathlib.Path, rng: random.Random) -> None:
    """A bit flipped, a file cut short or gone: by size, or any of them."""
    files = [x for x in sorted(checkpoint.rglob("*")) if x.is_file()]
    sizes = [x.stat().st_size for x in files] if rng.random() < 0.5 else None
    (file,) = rng.choices(files, sizes)
    content = bytearray(file.read_bytes())
    if kind == "gone":
        file.unlink()
    elif kind == "cut short":
        file.write_bytes(content[: rng.randrange(max(len(content), 1))])
    elif content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


KINDS = ("flipped", "cut short", "gone")


def damaged(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """The newest checkpoint of a run that was killed; it is resumed."""
    for kind in KINDS:
        for _ in range(1 if o.quick else 3):
            out = e.new()
            e.stopped(6, out)
            newest = max(int(x.name) for x in whole_ones(out))
            damage(kind, out / "checkpoints" / str(newest), rng)
            row.count(e.resumes(out), kind)


def whole_ones(out: pathlib.Path) -> list[pathlib.Path]:
    return [x for x in (out / "checkpoints").iterdir() if x.name.isdigit()]


def restored(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Many damaged checkpoints of a run's state, without the run."""
    whole, copy, options = e.new(), e.new(), {"gamma": 0.98}
    kept, runs = Checkpoints(whole, options), {}
    init = training.trainer(environments.cartpole(), training.PPO()).init
    for step in (1, 2, 3):
        runs[step] = init(jax.random.key(step))
        kept.save(step, runs[step])
    kept.close()
    kinds = [KINDS[0]] * o.flips + [*KINDS[1:]] * (o.flips // 2)
    for kind in tqdm(kinds, desc="damage"):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        damage(kind, copy / "3", rng)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                kept = Checkpoints(copy, options)
                step, found = kept.restore(runs[1])
                kept.close()
            except ValueError as error:
                row.count(str(copy) in str(error), f"{kind}: refused")
                continue
        told = step == 3 or any("is damaged" in str(x.message) for x in said)
        note = {3: "no harm", 2: "the one before", 1: "the one before that"}[step]
        row.count(same(found, runs[step]) and told, f"{kind}: {note}")


def same(x: Any, y: Any) -> bool:
    """Bit for bit."""
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x).tobytes()
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(data(x) == data(y) for x, y in pairs)


def elsewhere(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Begun on one device, continued on two, on four, and on one again."""
    out, wanted = e.new(), json.loads(e.uninterrupted[0])
    done, far = e.stopped(3, out), []
    for mesh, devices in zip(MESHES[e.name], (2, 4), strict=False):
        first, resume = done, ("--resume", out, "--mesh", mesh)
        done = e.stopped(first + 2, out, *resume, devices=devices)
        # The first line of two devices: what is rounded otherwise grows after that.
        far = far or apart(processes.rows(out)[first], wanted[first])
    e.finish(e.start("--resume", out))
    good = max(far) < 1e-4 and len(processes.rows(out)) == len(wanted)
    row.count(good, f"entropy, KL and losses of the next line within {max(far):.1g}")
    process = e.start("--resume", out, "--mesh", MESHES[e.name][2], devices=3)
    said = e.finish(process, code=1)
    row.count("Fix" in said or "expected" in said, "3 devices: refused")


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> list[float]:
    """Differences relative to their size, or to 0.01 of what is nearly 0."""
    names = ("entropy", "approx_kl", "policy_loss", "value_loss")
    pairs = [(np.ravel(ours[k]), np.ravel(theirs[k])) for k in names if k in ours]
    return [float(np.max(np.abs(x - y) / (np.abs(y) + 0.01))) for x, y in pairs]


def changed(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """Resumed with another option: on the command line, in the file, in the code."""
    out = e.new()
    e.stopped(3, out)
    path, metrics = out / "config.json", out / "metrics.jsonl"
    config, before = path.read_text(), metrics.read_text()
    refused = []

    def tried(note: str, new: str, message: str, *args: str) -> None:
        path.write_text(new)
        process = e.start("--resume", out, *args)
        said, _ = process.communicate(timeout=PATIENCE)
        untouched = metrics.read_text() == before
        good = process.returncode == 1 and message in said and untouched
        if not good:
            print(note, said, process.returncode, untouched)
        refused.append((good, note))

    changed = lambda **new: json.dumps(json.loads(config) | new)
    rate = "--learning-rate=0.5"
    tried("given", config, "that run has learning_rate", rate)
    tried("in the file", changed(learning_rate=0.5), "learning_rate = ")
    tried("an option gone from the code", changed(of_old=1), "of_old")
    tried("the file cut short", config[:100], "no run to continue")
    path.write_text(config)
    resumed = e.resumes(out)  # put back, it goes on
    for good, note in refused:
        row.count(good and resumed, note)


def bereft(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """One of two processes is killed, or stopped; the other must not wait for ever."""

    def pair(*args: Any) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        each = [address, "--processes=2", "--mesh", MESHES[e.name][0], *args]
        return [e.start(*each, f"--process={i}") for i in range(2)]

    def end(both: list[subprocess.Popen]) -> list[int]:
        for process in both:
            process.communicate(timeout=PATIENCE)
        return [process.returncode for process in both]

    whole = e.new()
    assert end(pair("--out", whole, *e.args)) == [0, 0]
    for number in (signal.SIGKILL, signal.SIGTERM):
        for which in (0, 1):
            out = e.new()
            both = pair("--out", out, *e.args)
            e.wait_for(both[0], out, 3)
            begin = time.monotonic()
            both[which].send_signal(number)
            said, _ = both[1 - which].communicate(timeout=PATIENCE)
            seconds, codes = time.monotonic() - begin, end(both)
            lost = e.lost(out)
            if number == signal.SIGTERM:
                good = codes == [128 + number] * 2 and lost == 0
            else:
                clear = "Another process" in said or "another task died" in said
                good = codes[1 - which] not in (0, None) and seconds < 100 and clear
            resumed = end(pair("--resume", out)) == [0, 0]
            good = good and resumed and result(out) == result(whole)
            if not good:
                print(said, codes, seconds, resumed)
            # Which second it is differs from run to run: it is not part of a note.
            row.count(good, f"{number.name} to {which}", lost)


def planted(
    fault: str, check: Callable[[list[dict[str, Any]], str, int], bool], *args: str
) -> Fault:
    """A fault of `tests/faults/planted.py`; what the lines and the output must show."""

    def inflict(e: Example, o: Options, rng: random.Random, row: Row) -> None:
        out = e.new()
        process = e.start("--out", out, *e.args, *args, fault=fault)
        said, _ = process.communicate(timeout=PATIENCE)
        good = check(processes.rows(out), said, process.returncode)
        if not good:
            print(said, process.returncode)
        row.count(good, "as expected")

    return inflict


def jumped(e: Example, o: Options, rng: random.Random, row: Row) -> None:
    """The clock, in a run, and between a run and its continuation."""
    out = e.new()
    lost = e.lost(out) if e.stopped(4, out, fault="clock") else 0
    row.count(e.resumes(out, fault="clock"), "the same run", lost)


def sums(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.sum([row[name] for row in rows]))


def skipped(rows: list[dict[str, Any]]) -> int:
    """Minibatches: a line has their share of its update's."""
    (minibatches,) = (n for k, n in MINIBATCHES.items() if STEP[k] in rows[0])
    return round(minibatches * sums(rows, "skipped"))


ON_HOSTS, OF_TEXT = ("cartpole",), ("train_llm",)
FAULTS: dict[str, tuple[str, tuple[str, ...], Fault]] = {  # expected, where, what
    "kill -9": ("resumed, the same run", (), killed),
    "SIGTERM": ("saves, leaves with 143; resumed, the same run", (), terminated),
    "disk full": ("a clear error; with room made, the same run", (), full),
    "memory full": ("ends with an error; resumed, the same run", (), starved),
    "checkpoint damaged": ("resumed, the same run", (), damaged),
    "checkpoints damaged": (
        "the one before, with a warning; or no harm; or refused by name",
        ON_HOSTS,
        restored,
    ),
    "other devices": ("the same run, to rounding", (), elsewhere),
    "options changed": ("refused by name, and nothing touched", (), changed),
    "one of two dies": (
        "the other ends in 100 s; the pair resumes, the same run",
        (),
        bereft,
    ),
    "environment breaks at times": (
        "the steps are left out and counted; goes on",
        ON_HOSTS,
        planted(
            "environment",
            lambda rows, said, code: code == 0 and 0 < sums(rows, "left_out") < 1,
        ),
    ),
    "environment only breaks": (
        "ends with a clear error",
        ON_HOSTS,
        planted(
            "dead",
            lambda rows, said, code: code == 1 and "Look at the environment" in said,
        ),
    ),
    "loss is NaN for 3 steps": (
        "skipped and counted; goes on",
        (),
        planted(
            "loss",
            lambda rows, said, code: (
                code == 0 and skipped(rows) == 3 and skipped(rows[-2:]) == 0
            ),
        ),
    ),
    "rewards fail in six ways": (
        "the samples are left out and counted; goes on",
        OF_TEXT,
        planted(
            "reward",
            lambda rows, said, code: code == 0 and sums(rows, "failed_rewards") > 0,
            "--reward-seconds=0.5",
        ),
    ),
    "clock jumps": ("the same run", (), jumped),
}


EMPTY = "Lines lost are left empty where they were not counted."


def write(found: list[Row], out: pathlib.Path) -> list[pathlib.Path]:
    """The table, so far."""
    rows = [
        {
            "example": row.example,
            "fault": row.fault,
            "expected": row.expected,
            "tried": row.tried,
            "survived": row.survived,
            "lines lost, median": float(np.median(row.lost)) if row.lost else None,
            "most": max(row.lost, default=None),
            "seen": ", ".join(f"{n} {note}" for note, n in row.notes.items()),
        }
        for row in found
    ]
    of = lambda row: (row["example"], row["fault"])
    before = out / "survival.json"
    kept = json.loads(before.read_text()) if before.exists() else []
    merged = {of(row): row for row in [*kept, *rows]}
    order = [(example, fault) for example in SMALL for fault in FAULTS]
    rows = [merged[x] for x in order if x in merged]
    table = measure.table(rows, rows[0])
    made_by = f"jaxppo's examples, in processes; {measure.machine()}.\n{EMPTY}"
    return measure.write(out, "survival", f"{made_by}\n\n{table}", rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
