"""A run's folder: its options, its metrics line by line, and how it is continued."""

import dataclasses
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from . import devices


@dataclasses.dataclass(frozen=True)
class Options:
    """Where a run takes place; it is the same run anywhere."""

    out: Path | None = None
    """Folder for everything written; made from the time if not given."""
    resume: Path | None = None
    """Folder of a run to continue, exactly, from its last checkpoint."""
    coordinator: str | None = None
    """Address of process 0, such as 10.0.0.1:1234, if there are several."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is."""


Chosen = TypeVar("Chosen", bound=Options)
MACHINE = {*Options.__dataclass_fields__, "mesh", "axes"}  # no part of what a run is


def parse(default: Chosen, doc: str, args: list[str] | None = None) -> Chosen:
    """The command line's options; a resumed run's are its own.

    Args:
        default: a dataclass, what holds if nothing is given.
        doc: the example's docstring, whose first line `--help` shows.
        args: instead of the command line.
    """
    options = tyro.cli(
        type(default), default=default, description=doc.partition("\n")[0], args=args
    )
    if options.resume is None:
        return options
    try:
        saved = json.loads((options.resume / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SystemExit(
            f"--resume {options.resume}: no run to continue there ({error})."
        ) from None
    usual, given = config(default), config(options)
    for name, value in given.items():
        if value not in (usual[name], saved.get(name)):
            raise SystemExit(
                f"--resume {options.resume}: that run has {name} = {saved.get(name)}, "
                f"not {value}. Leave the option out to continue it exactly."
            )
    if unknown := saved.keys() - usual.keys():
        raise SystemExit(
            f"--resume {options.resume}: that run has {', '.join(sorted(unknown))}, "
            "which this version does not know. Go on with the version that began it."
        )
    for name in usual.keys() - saved.keys():
        print(f"{name} is new since that run began: {usual[name]}")
    for name, value in saved.items():
        if isinstance(getattr(default, name), tuple):
            saved[name] = tuple(value)
    own = {name: x for name, x in vars(options).items() if name in MACHINE}
    return dataclasses.replace(default, **saved, **own)


def config(options: Any) -> dict[str, Any]:
    """The options that a run is determined by, as JSON has them."""
    fields = dataclasses.asdict(options)
    return json.loads(
        json.dumps({k: v for k, v in fields.items() if k not in MACHINE}, default=str)
    )


def folder(name: str, options: Options) -> Path:
    """The one to resume, or a new one, which process 0 makes for all."""
    out = options.resume or Path()
    if jax.process_index() == 0:
        out = options.resume or new(name, options)
        print(f"writing to {out}/", flush=True)
    return devices.agreed(out)


def new(name: str, options: Any) -> Path:
    """A new folder, `options.out` or named by the time, with the options in it."""
    out = options.out or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
    if (out / "config.json").exists():
        raise SystemExit(
            f"{out} holds a run already: continue it with --resume {out}, or give "
            "another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "config.json", json.dumps(config(options), indent=2) + "\n")
    return out


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What a full disk says of a file in a run's folder."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error}). Free space, then continue with "
            f"--resume {path.parent}"
        ) from error


def append(out: Path, row: dict[str, Any]) -> None:
    """One more line of metrics."""
    path = out / "metrics.jsonl"
    with writing(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rewind(out: Path, name: str, done: int) -> list[dict[str, Any]]:
    """Cut the metrics back to a checkpoint; a killed process may leave half a line."""
    lines = []
    if done:
        lines = (out / "metrics.jsonl").read_text(errors="replace").splitlines()
    found = [_row(line, name) for line in lines]
    if None in found[:-1]:
        warnings.warn(f"rows of {out / 'metrics.jsonl'} are damaged", stacklevel=2)
    rows = [row for row in found if row is not None and row[name] <= done]
    replace(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _row(line: str, name: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and name in row else None


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)
