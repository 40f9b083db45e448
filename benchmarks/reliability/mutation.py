"""Would the tests notice? Small faults, one at a time, and what fails of each.

    python benchmarks/reliability/mutation.py               # 700 of all 8,000
    python benchmarks/reliability/mutation.py --only _kl.py --sample 50
    python benchmarks/reliability/mutation.py --again       # the living, with more time
    python benchmarks/reliability/mutation.py --quick       # only see that it works

The tests are collected once, by a process whose JAX has not started its backend: a
fork of it for each mutant puts the new code into the functions and runs, nearest first,
the tests that reach them by name, until one fails. (mutmut forks after the backend's
threads are up, and hangs; cosmic-ray starts Python and JAX for each mutant.) Its time
is of the CPU, so a busy machine changes nothing; what never ends is killed, too.

`survivors.txt`, beside this file, says of every mutant that lived why no test can tell,
or that it is a gap. Leaves mutation.json and a table.
"""

import ast
import collections
import dataclasses
import functools
import gc
import inspect
import json
import math
import os
import pathlib
import random
import re
import resource
import select
import signal
import sys
import time
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import jax
import jaxtyping
import measure
import mutants
import pytest
import tyro
from mutants import Mutant
from tqdm import tqdm

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
# Their modules make no array when they are imported; quickest first.
READY = """test_oracles test_vectors test_contract test_gradients test_kl_gradients
test_properties test_learner test_shuffle test_invariance test_head_sharding
faults/test_training""".split()
# These do, so a fork collects them, when the others have found nothing.
LIBRARY = "test_catalogue test_errors faults/test_shapes faults/test_hyper_parameters"
HEADS = "test_head test_catalogue test_errors"
RECIPES = "test_recipes test_recipe_defaults test_recipe_oracles test_parity"
METHODS = "test_recipes test_recipe_defaults test_methods"
CONTROL = "test_recipes test_recipe_defaults test_control_parity"
SYSTEMS = "cleanrl purejaxrl rllib sb3 sbx stoix".split()  # of control
EVERYTHING = "faults/test_numeric faults/test_distributed test_head test_methods"
SLOW = 600  # seconds of the clock without a word from a fork: it hangs


@dataclasses.dataclass(frozen=True)
class Options:
    """How many, and how long."""

    sample: int = 700
    """Mutants, drawn from every file by its share, at least three of each."""
    seed: int = 0
    """Of the draw."""
    only: str = ""
    """Of files whose path has this in it."""
    seconds: float = 40.0
    """CPU time of a mutant's tests, after which it is alive."""
    minutes: float = math.inf
    """Of the clock, after which no mutant is begun."""
    again: bool = False
    """Only those alive in the folder's results that nothing is said of, and six times
    the time."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/mutation")
    """Folder for the results; what it has is not done again."""


def main(o: Options) -> None:
    """Run what is not there yet, then write all of it down."""
    if o.quick:
        o = dataclasses.replace(o, sample=4, only=o.only or "_value.py")
    o.out.mkdir(parents=True, exist_ok=True)
    done = load(o.out / "done.json")
    drawn = draw(o)
    todo = [m for m in drawn if m.key not in done]
    if o.again:
        left = {k for k, x in done.items() if "alive" in x} - argued().keys()
        todo = [m for m in drawn if m.key in left]
        o = dataclasses.replace(o, seconds=6 * o.seconds)
    if todo:
        environment(o.out)
        os.chdir(ROOT)
        runner = Runner(o, todo, done)
        tests = [f"tests/{name}.py" for name in READY]
        options = "-q -s -n0 -p no:cacheprovider -W ignore".split()
        pytest.main([*options, *tests, "jaxppo"], plugins=[runner])
    write(o, [m for m in drawn if m.key in done], done)


def environment(out: pathlib.Path) -> None:
    """Programs that no mutant changes are compiled once, and all of them quickly."""
    # In front: XLA reads no flag behind one without dashes, such as `measure`'s last.
    more = "backend_optimization_level=0", "force_host_platform_device_count=8"
    flags = [*(f"--xla_{flag}" for flag in more), os.environ["XLA_FLAGS"]]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str((out / "hypothesis").absolute())
    for name, value in {  # JAX has read its own variables when it was imported
        "platforms": "cpu",
        "compilation_cache_dir": str((out / "compiled").absolute()),
        "persistent_cache_min_compile_time_secs": 0,
        "persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(f"jax_{name}", value)


def sources(only: str) -> dict[str, str]:
    """The library, by path."""
    paths = sorted((ROOT / "jaxppo").rglob("*.py"))
    names = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}
    return {name: text for name, text in names.items() if only in name}


def draw(o: Options) -> list[Mutant]:
    """From every file by its share, in an order that mixes them."""
    found = {name: mutants.of(name, text) for name, text in sources(o.only).items()}
    every = sum(map(len, found.values()))
    rng, drawn = random.Random(o.seed), []
    for some in found.values():
        share = max(3, round(o.sample * len(some) / every))
        drawn += rng.sample(some, min(share, len(some)))
    rng.shuffle(drawn)
    return drawn


# --- which tests reach a mutant ---


@functools.cache
def callers() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """By a name of the library: the definitions that mention it."""
    found = collections.defaultdict(set)
    for file, text in sources("").items():
        for node in mutants.parsed(text).body:
            names = {getattr(x, "id", getattr(x, "attr", "")) for x in ast.walk(node)}
            for user in defined(node):
                for name in names - {user, ""}:
                    found[place(file, name)].add(place(file, user))
    return found


def place(file: str, name: str) -> tuple[str, str]:
    """A name and, of a private one, whose."""
    return file if name.startswith("_") else "", name


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return [x.id for x in ast.walk(target) if isinstance(x, ast.Name)]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [x.id for x in ast.walk(node.value.func) if isinstance(x, ast.Name)]
    return []  # (what is called is `f` of `f.defvjp(forward, backward)`)


def distances(mutant: Mutant) -> dict[str, int]:
    """How many calls lie between a mutant's definition and those that lead to it."""
    edge = [place(mutant.file, mutant.inside)]
    found = {edge[0]: 0}
    while edge:
        name = edge.pop(0)
        for user in callers()[name] - found.keys():
            found[user] = found[name] + 1
            edge.append(user)
    least: dict[str, int] = {}
    for (_, name), k in found.items():
        least[name] = min(k, least.get(name, k))
    return least


@functools.cache
def words(item: pytest.Item) -> frozenset[str]:
    """Of a test's name, its row of a table, and, but for each case's, its source."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    text = item.nodeid.replace("::test_", " ")
    if hasattr(item, "function") and "case" not in given:
        text += inspect.getsource(item.function)
    keys = [x for x in given.values() if isinstance(x, str)]
    return found_in(text).union(*(rows().get(key, ()) for key in keys))


@functools.cache
def rows() -> dict[str, frozenset[str]]:
    """By a key of the tests' tables: the words of what it stands for."""
    found = collections.defaultdict(frozenset)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = mutants.parsed(path.read_text("utf-8"))
        helpers = {x.name: x for x in tree.body if isinstance(x, ast.FunctionDef)}
        for table in (x for x in ast.walk(tree) if isinstance(x, ast.Dict)):
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Constant):
                    used = found_in(ast.unparse(value))
                    inner = [
                        found_in(ast.unparse(helpers[x])) for x in used & {*helpers}
                    ]
                    found[key.value] = found[key.value].union(used, *inner)
    return found


def found_in(text: str) -> frozenset[str]:
    """Its words."""
    return frozenset(re.findall(r"\w+", text))


def nearest(items: Iterable[pytest.Item], mutant: Mutant) -> list[pytest.Item]:
    """Those that reach the mutant by name: nearest first, and a few of each test."""
    near, turn, ranks = distances(mutant), collections.Counter(), {}
    for item in items:
        general = 50 if system(mutant) and "[" not in item.nodeid else None
        least = min((near[w] for w in words(item) if w in near), default=general)
        if least is not None:
            test = least, item.nodeid.partition("[")[0]
            turn[test] += 1
            value = "grad" not in item.nodeid and mutant.inside.endswith("wd")
            ranks[item] = least, value, turn[test]
    return sorted(ranks, key=ranks.__getitem__)


def system(mutant: Mutant) -> str:
    """Whose recipe it is, as the tests call it; "" of the library's own terms."""
    parts = pathlib.Path(mutant.file).parts
    name = parts[2].removesuffix(".py").strip("_") if len(parts) > 2 else ""
    return name.removesuffix("_rl")  # prime/ppo


# --- a mutant's fork ---


def install(mutant: Mutant) -> None:
    """Its code and defaults into the functions that there are; its constants, too."""
    path = ROOT / mutant.file
    tree = mutants.mutated(path.read_text("utf-8"), mutant)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    module = sys.modules[name.removesuffix(".__init__")]
    fresh = dict(vars(module))
    exec(compile(tree, str(path), "exec"), fresh)
    new = {named(f): f for f in functions(path) if f.__globals__ is fresh}
    for f in functions(path):
        if f.__globals__ is not fresh and named(f) in new:
            other = new[named(f)]
            f.__code__, f.__defaults__ = other.__code__, other.__defaults__
            f.__kwdefaults__ = other.__kwdefaults__
    for name, old in list(vars(module).items()):
        if isinstance(fresh[name], (int, float, tuple, dict, str, set)):
            for user in [m for k, m in sys.modules.items() if k.startswith("jaxppo")]:
                if vars(user).get(name) is old:
                    setattr(user, name, fresh[name])


def functions(path: pathlib.Path) -> list[types.FunctionType]:
    """Every function of a file that exists now."""
    every = [x for x in gc.get_objects() if type(x) is types.FunctionType]
    return [f for f in every if f.__code__.co_filename == str(path)]


def named(f: types.FunctionType) -> tuple[str, int]:
    """A function's name; a lambda's line, too."""
    code = f.__code__
    return code.co_qualname, code.co_firstlineno * ("<lambda>" in code.co_qualname)


class Runner:
    """A plugin of pytest: what it has collected is run by forks, a mutant each."""

    def __init__(self, o: Options, todo: list[Mutant], done: dict[str, Any]) -> None:
        """Results go into `done`, and into the folder as they come."""
        self.o, self.todo, self.done = o, todo, done

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All mutants; then what has killed them, without any."""
        alive, start = 0, time.monotonic()
        callers(), [words(item) for item in session.items]  # once, not in each fork
        with tqdm(self.todo, unit=" mutants", smoothing=0) as bar:
            for mutant in bar:
                if time.monotonic() > start + 60 * self.o.minutes:
                    break
                found = self.fork(lambda m=mutant: self.tests(session, m), mutant)
                self.done[mutant.key] = found
                alive += "alive" in found
                bar.set_postfix_str(f"{alive} alive")
                save(self.o.out / "done.json", self.done)
        self.control(session)
        return True

    def control(self, session: pytest.Session) -> None:
        """Without a mutant none of the tests may fail: what does has killed nothing."""
        killers = {
            x["killed"] for x in self.done.values() if "::" in x.get("killed", "")
        }
        files = {x.partition("::")[0] for x in killers} - {
            item.nodeid.partition("::")[0] for item in session.items
        }

        def tests() -> Iterator[pytest.Item]:
            items = [*session.items, *session.perform_collect(sorted(files))]
            yield from (item for item in items if item.nodeid in killers)

        while "::" in (wrong := self.fork(tests, None).get("killed", "")):
            killers.remove(wrong)
            print("fails without a mutant:", wrong)
            for key, found in self.done.items():
                if found.get("killed") == wrong:
                    self.done[key] = {"alive": 0, "cut": True}
        save(self.o.out / "done.json", self.done)

    def fork(self, tests: Any, mutant: Mutant | None) -> dict[str, Any]:
        """What a fork says of its tests, or how it ended."""
        start = time.monotonic()
        read, write = os.pipe()
        with warnings.catch_warnings(action="ignore"):
            child = os.fork()
        if not child:
            self.child(write, tests, mutant)
        os.close(write)
        words = b""
        while select.select([read], [], [], SLOW)[0]:
            said = os.read(read, 65536)
            if not said:
                break
            words += said
        else:
            os.kill(child, signal.SIGKILL)
        os.close(read)
        status, used = os.wait4(child, 0)[1:]
        last = words.decode().splitlines()[-1:] or ["{}"]
        found = json.loads(last[0])
        if os.WIFSIGNALED(status):  # in the test it had begun
            found = {"killed": found.get("test", ""), "signal": os.WTERMSIG(status)}
        cpu = round(used.ru_utime + used.ru_stime, 1)
        return found | {"cpu": cpu, "seconds": round(time.monotonic() - start, 1)}

    def child(self, pipe: int, tests: Any, mutant: Mutant | None) -> None:
        """Never returns."""
        most = self.o.seconds if mutant else math.inf
        if mutant:
            limit = int(3 * most) + 60
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        say = lambda **found: os.write(pipe, (json.dumps(found) + "\n").encode())
        jaxtyping.config.update("jaxtyping_disable", bool(mutant))  # half of the time
        ran = 0
        try:
            if mutant:
                install(mutant)
            for item in tests():
                if time.process_time() > most:
                    say(alive=ran, cut=True)
                    break
                say(test=item.nodeid)
                if failed(item):
                    say(killed=item.nodeid)
                    break
                ran += 1
            else:
                say(alive=ran)
        except BaseException as error:  # a module that cannot be, or tests that can't
            say(killed="import", error=repr(error)[:200])
        os._exit(0)

    def tests(self, session: pytest.Session, mutant: Mutant) -> Iterator[pytest.Item]:
        """The nearest of those collected, then of the other files'."""
        own = system(mutant)
        head = re.search("head|stream|fused|linear|selective", mutant.file)
        files = RECIPES if own else HEADS if head else LIBRARY
        files = METHODS if own == "methods" else CONTROL if own in SYSTEMS else files
        files += f" {EVERYTHING}" * (self.o.again and not own)
        if not own and not self.o.again:
            yield from nearest(session.items, mutant)[:60]
        later = []
        for name in dict.fromkeys(files.split()):
            found = nearest(self.collect(session, name), mutant)
            first = [x for x in found if own in x.nodeid.replace("-", "_")]
            yield from first
            later += [item for item in found if item not in first]
        yield from later
        if own or self.o.again:  # the other files have had less of the time so far
            yield from nearest(session.items, mutant)

    def collect(self, session: pytest.Session, name: str) -> list[pytest.Item]:
        """A file's tests, in a fork."""
        return list(session.perform_collect([f"tests/{name}.py"]))


def failed(item: pytest.Item) -> bool:
    """Run it."""
    from _pytest.runner import runtestprotocol

    item._initrequest()
    return any(report.failed for report in runtestprotocol(item, log=False))


# --- what came of it ---


def load(path: pathlib.Path) -> dict[str, Any]:
    """What an earlier run has found."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def save(path: pathlib.Path, found: dict[str, Any]) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=0), "utf-8")
    part.replace(path)


def argued() -> dict[str, str]:
    """Why no test can tell, by mutant: "gap" where one should."""
    lines = (HERE / "survivors.txt").read_text("utf-8").splitlines()
    pairs = [line.rsplit(" | ", 1) for line in lines if line and line[0] != "#"]
    return {key: why for key, why in pairs}


def write(o: Options, drawn: list[Mutant], done: dict[str, Any]) -> None:
    """Scores by file, and the survivors."""
    why, rows, left = argued(), [], []
    for name in sorted({m.file for m in drawn}):
        here = [m for m in drawn if m.file == name]
        alive = [m for m in here if "alive" in done[m.key]]
        explained = sum(why.get(m.key, "gap") != "gap" for m in alive)
        rows.append({"file": name, **score(len(here), len(alive), explained)})
        left += [
            {"at": f"{m.file}:{m.line}", "in": m.inside, "change": m.text}
            | {"why": why.get(m.key, "gap")}
            for m in sorted(alive, key=lambda m: m.line)
        ]
    count = lambda key: sum(row[key] for row in rows)
    total = score(count("mutants"), count("alive"), count("argued"))
    results = {"seed": o.seed, "total": total, "files": rows, "survivors": left}
    results |= {k: x for k, x in load(o.out / "mutation.json").items() if k == "note"}
    paths = measure.write(o.out, "mutation", page(results), results)
    print(measure.table([total], total))
    print("written:", *paths)


def page(found: dict[str, Any]) -> str:
    """The note, written by hand into the results; the scores; the living."""
    rows = [{"file": "all", **found["total"]}, *found["files"]]
    shown = [{k: "-" if x is None else x for k, x in row.items()} for row in rows]
    listed = "\n".join(
        f"- `{x['at']}` `{x['change']}`: {x['why']}" for x in found["survivors"]
    )
    about = " ".join([f"Seed {found['seed']}.", *filter(None, [found.get("note")])])
    return f"{about}\n\n{measure.table(shown, rows[0])}\n\nAlive:\n\n{listed}"


def score(mutants: int, alive: int, explained: int) -> dict[str, Any]:
    """Of the mutants, and without those argued in `survivors.txt`."""
    percent = lambda of: round(100 * (mutants - alive) / of, 2) if of else None
    both = {"score": percent(mutants), "without": percent(mutants - explained)}
    return {"mutants": mutants, "alive": alive, "argued": explained} | both


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
