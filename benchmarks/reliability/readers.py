"""A million damaged files: each is read as it should be, or is an error that names it.

    python benchmarks/reliability/readers.py          # a million, in 10 minutes of CPU
    python benchmarks/reliability/readers.py --quick  # a few thousand

What the examples read is damaged where it hurts: flipped bits, cut ends, counts and
offsets that are huge, overlap or overflow, names twice, deep nesting, paths that lead
out, a megabyte of nothing. It is read in a process of its own, in which more than a GiB
of new memory is an error and more than seconds are its end. Leaves readers.json and a
table; an input is made from the seed, its reader and its number alone.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["RUST_BACKTRACE"] = "0"  # a panic's takes milliseconds
sys.path.extend(
    str(pathlib.Path(__file__).parents[2] / part)
    for part in ("benchmarks", "examples", "tests")
)

import gguf
import jax
import jax.numpy as jnp
import llm_models
import measure
import numpy as np
import tyro
from common.checkpoints import Checkpoints
from llm import tiny, weights
from llm.model import Config, Training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

BASE, TIMES = 2**27, 256  # bytes that reading may take: BASE + TIMES * the file's
ROOM = 2**30  # of address space, above what a process has when it begins
SECONDS, WALL = 3, 60  # for one input: of CPU time, and of the clock
GOOD = "read", "clear error"
BAD = "unclear error", "wrong", "memory", "hang", "crash"
OUTCOMES = *GOOD, *BAD

Rng = random.Random
Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Options:
    """How many."""

    inputs: int = 1_000_000
    """In all, but for checkpoints."""
    checkpoints: int = 3000
    """Folders of checkpoints, which take Orbax 50 ms each."""
    readers: tuple[str, ...] = ()
    """Only these."""
    seed: int = 0
    """Other inputs."""
    first: int = 0
    """Of each reader's numbers, to look at one input again."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/readers")
    """Folder for the table."""


class Reader(NamedTuple):
    """What is damaged, and how it is read.

    Attributes:
        share: of all inputs; of the checkpoints there are so many.
        start: `start(folder)` writes what is sound; returns `one`.
        one: `one(rng)` damages it and returns its size and a function that reads it.
    """

    share: float
    start: Callable[[pathlib.Path], Callable[[Rng], tuple[int, Callable[[], None]]]]


# --- what is sound ---

CONFIG = Config(
    **dict(vocab_size=9, dim=4, hidden_dim=6, num_layers=1, num_heads=2),
    **dict(num_kv_heads=1, head_dim=2, max_len=64, rope_theta=1e4, norm_eps=1e-5),
)
WORDS = ["<|endoftext|>", "<|end|>", *"123+=Ġ", "12"]


def tokenizer() -> Tokenizer:
    """Few words, so that it is small."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("1", "2")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(WORDS[:2])
    return made


def small() -> weights.Source:
    """The model."""
    return tiny.source(CONFIG)._replace(tokenizer=tokenizer())


def write_folder(folder: pathlib.Path) -> None:
    """The model, as it is exported."""
    source = small()
    _, params = weights.loaded(source, Training(), jax.random.key(0))
    weights.export(folder, CONFIG, Training(), params, source.tokenizer, (0, 1))


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Of everything that a file must have."""
    heads, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    layer: dict[str, tuple[int, ...]] = dict(q=(c.dim, heads), o=(heads, c.dim))
    layer |= dict(k=(c.dim, keys), v=(c.dim, keys), down=(c.hidden_dim, c.dim))
    layer |= dict.fromkeys(("gate", "up"), (c.dim, c.hidden_dim))
    layer |= dict.fromkeys(("attention_norm", "mlp_norm"), (c.dim,))
    found = {"model.embed_tokens.weight": (c.vocab_size, c.dim)}
    found["model.norm.weight"] = (c.dim,)
    for i in range(c.num_layers):
        for name, shape in layer.items():
            found[f"model.layers.{i}.{weights.LAYER[name]}.weight"] = shape
    return found


def read_model(path: pathlib.Path) -> None:
    """Everything in it, into memory."""
    source = weights.read(path)
    for name, shape in shapes(source.config).items():
        x = weights._tensor(source, name, shape)
        assert x.dtype == np.float32, "not float32"
        assert not np.any(x == OUTSIDE), "read from outside the folder"
    assert type(source.config.max_len) is int, "no count"


# --- how it is damaged ---

OUTSIDE = 777.0  # what tensors outside the folder are made of
HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63]
INTS = [0, 1, 2, 3, 4, 7, 8, 9, 16, 255, 65535, *HUGE, 2**64 - 8, 2**64 - 1]
WILD: list[Any] = [
    *(None, True, False, -1, -(2**63), 10**30, 0.5, 1e308, math.inf, -math.inf),
    *(math.nan, "", "x", "\0", "\ud800", "é" * 300, "../outside/model.safetensors"),
    *([], {}, [[]], [{}], {"": {}}, [0, 0], [-1], [1, 2, 3], [2**63, 2**63]),
    *("F32", "F64", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "BPE", "WordPiece"),
    *INTS,
]


REGEXES = (
    "(1+)+$",
    "(?<=1|22)",
    "[",
    "(?:" * 999,
    "\\p{L}",
    "(1|1?)*=",
    "",
    "(?R)",
    "1{99999}",
    "(1+1+1+1+)+=",
    "((1?){99}){99}((1*)*)*=",
)
NORMALIZERS: list[Any] = [
    *({"type": kind} for kind in ("NFKC", "Lowercase", "StripAccents", "Nmt")),
    *(
        {"type": "Precompiled", "precompiled_charsmap": text}
        for text in ("", "AAAA", "/////w==", "////f////38A", "QAAAAAAB" * 20, "=")
    ),
    *(
        {"type": "Replace", "pattern": {"Regex": regex}, "content": "x" * 99}
        for regex in REGEXES
    ),
    {"type": "Prepend", "prepend": "x" * 9999},
    {"type": "Sequence", "normalizers": []},
]
BEFORE: list[Any] = [
    *({"type": kind} for kind in ("Whitespace", "BertPreTokenizer", "UnicodeScripts")),
    *(
        dict(type="Split", pattern={"Regex": regex}, behavior=behavior, invert=invert)
        for regex in REGEXES
        for behavior in ("Isolated", "Removed", "MergedWithNext", "Contiguous")
        for invert in (True, False)
    ),
    *(
        dict(type="Metaspace", replacement=text, prepend_scheme="always", split=True)
        for text in ("", "ab", "\0", "▁")
    ),
    *(dict(type="FixedLength", length=n) for n in (0, 1, 2**64 - 1)),
]
PARTS: dict[str, list[Any]] = dict(
    normalizer=NORMALIZERS,
    pre_tokenizer=BEFORE,
    truncation=[
        dict(max_length=n, stride=m, strategy="LongestFirst", direction="Left")
        for n in (0, 1, 2**63)
        for m in (0, 1, 2**63)
    ],
    padding=[
        dict(strategy=strategy, direction="Right", pad_to_multiple_of=n, pad_id=n or 0)
        | dict(pad_type_id=0, pad_token="x")
        for strategy in ("BatchLongest", {"Fixed": 10**12}, {"Fixed": 2**64 - 1})
        for n in (None, 0, 2**32 - 1)
    ],
    post_processor=[
        dict(type="BertProcessing", sep=["x", 2**32 - 1], cls=["y", 10**9]),
        dict(type="TemplateProcessing", single=[], pair=[], special_tokens={}),
        *(
            dict(type="TemplateProcessing", pair=[], special_tokens=tokens)
            | dict(single=[{"SpecialToken": {"id": "x", "type_id": 0}}] * 3)
            for tokens in ({}, {"x": dict(id="x", ids=[10**9], tokens=["x"])})
        ),
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True),
    ],
    decoder=[
        dict(type="Strip", content="x", start=2**63, stop=2**63),
        dict(type="CTC", pad_token="", word_delimiter_token="", cleanup=True),
        *({"type": kind} for kind in ("ByteFallback", "Fuse", "Metaspace")),
        dict(type="Replace", pattern={"String": ""}, content="x" * 99),
    ],
    model=[
        dict(type="Unigram", unk_id=7, vocab=[["1", 0.0]]),
        dict(type="Unigram", unk_id=None, vocab=[]),
        dict(type="Unigram", unk_id=0, vocab=[["", math.inf], ["1", -1e308]]),
        dict(type="WordLevel", vocab={"1": 2**32 - 1}, unk_token="no"),
        dict(type="WordPiece", vocab={}, unk_token="", continuing_subword_prefix="")
        | dict(max_input_chars_per_word=2**63),
        *(
            dict(type="BPE", vocab={"a": 0, "b": n, "ab": n}, merges=merges)
            for n in (1, 2**32 - 1)
            for merges in ([["a", "b"]] * 3, ["a  b"], ["a"], [["", ""]], [["ab", "a"]])
        ),
    ],
)


def bulk(rng: Rng) -> str:
    """Half a megabyte of JSON that says nothing, well formed or not."""
    n = 2 ** rng.randrange(8, 20)
    kind = rng.randrange(8)
    nested = lambda opening, closing: opening * n + closing * (n * rng.randrange(2))
    if kind < 3:
        return nested(*[("[", "]"), ('{"a":', "0}"), ('[{"":', "}]")][kind])
    if kind == 3:
        return "9" * n
    if kind == 4:
        return json.dumps("x" * n)
    if kind == 5:
        return "[" + ",".join(["[]"] * (n // 3)) + "]"
    if kind == 6:
        return "{" + ",".join(f'"{i}":{i}' for i in range(n // 12)) + "}"
    return json.dumps({str(i): {"dtype": "F32", "shape": []} for i in range(n // 40)})


def place(rng: Rng, tree: Any) -> tuple[Any, Any]:
    """A node of JSON, as what holds it and its key there."""
    holder, key = tree, ""
    while isinstance(inner := holder[key], dict | list) and inner:
        if rng.random() < 0.2:
            break
        holder = inner
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    return holder, key


def damaged_json(rng: Rng, text: str) -> str:
    """Values, keys and structure."""
    tree, mark = {"": json.loads(text)}, ""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = place(rng, tree)
        kind, value = rng.randrange(9), holder[key]
        if kind < 3:
            holder[key] = copy.deepcopy(rng.choice(WILD))  # it may be damaged, too
        elif kind == 3 and isinstance(value, int | float):
            step = rng.choice((-8, -1, 1, 8, value))
            holder[key] = value + step
        elif kind == 4 and holder is not tree:
            del holder[key]
        elif kind == 5:
            other, name = place(rng, tree)
            holder[key] = json.loads(json.dumps(other[name]))
        elif kind == 6 and isinstance(holder, dict) and holder is not tree:
            holder[rng.choice(["", "x", "..", "__metadata__", key * 2])] = value
        elif kind == 7:
            holder[key] = [value]
        elif kind == 8 and rng.random() < 0.005:
            mark, holder[key] = bulk(rng), "\1"
    text = json.dumps(tree[""])
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"  # every name twice
    return text.replace('"\\u0001"', mark)


def damaged_bytes(rng: Rng, data: bytes, marks: list[tuple[int, int]]) -> bytes:
    """Bits, counts, pieces; `marks` are the places and sizes of numbers."""
    out, size = bytearray(data), len(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(8)
        at, wide = rng.choice(marks) if rng.random() < 0.7 else (rng.randrange(size), 8)
        if kind < 2:
            at = min(at + rng.randrange(wide), len(out) - 1)
            if out:
                out[at] ^= 1 << rng.randrange(8)
        elif kind < 5:
            number = rng.choice(INTS) if rng.random() < 0.8 else rng.randrange(size)
            out[at : at + wide] = (number % 256**wide).to_bytes(wide, "little")
        elif kind == 5:
            del out[rng.randrange(size) :]
        elif kind == 6:  # a piece again, somewhere or in its own place
            some, _ = rng.choice(marks)
            piece = out[at : at + rng.choice((8, 64, 512))]
            out[some:some] = piece
        else:
            del out[at : at + rng.choice((1, 4, 8, 64))]
    return bytes(out)


def damaged_safetensors(rng: Rng, data: bytes) -> bytes:
    """The header's JSON, or its bytes, or those of the tensors."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return damaged_bytes(rng, data, letters(size))
    header = damaged_json(rng, data[8 : 8 + size].decode()).encode()
    said = rng.choice(INTS) if rng.random() < 0.02 else len(header)
    return said.to_bytes(8, "little") + header + data[8 + size :]


@functools.cache
def letters(size: int) -> list[tuple[int, int]]:
    """The marks of a header: its length, and its bytes."""
    return [(0, 8)] * (size // 8) + [(8 + i, 1) for i in range(size)]


def damaged_text(rng: Rng, data: bytes) -> bytes:
    """JSON as JSON, at times as bytes."""
    if rng.random() < 0.2:
        return damaged_bytes(rng, data, [(0, 1)])
    return damaged_json(rng, data.decode()).encode()


def damaged_tokenizer(rng: Rng, data: bytes) -> bytes:
    """JSON, in which a part may be another one of those there are."""
    if rng.random() < 0.5:
        return damaged_text(rng, data)
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([*tree])
        tree[name] = rng.choice(PARTS.get(name, WILD))
    text = json.dumps(tree)
    return (text if rng.random() < 0.5 else damaged_json(rng, text)).encode()


def damaged_gguf(rng: Rng, data: bytes, marks: list[tuple[int, int]]) -> bytes:
    """Numbers, pieces, and at times an array of a megabyte, or of arrays."""
    if rng.random() < 0.001:
        n = 2 ** rng.randrange(6, 17)
        kind = rng.randrange(3)
        number = lambda x, wide: int(x).to_bytes(wide, "little")
        word, array = number(8, 4), number(9, 4)
        value = [  # empty words, an array in an array in ..., numbers
            array + word + number(n, 8) + bytes(8 * n),
            array * 2 + (number(1, 8) + array) * n,
            array + number(rng.randrange(13), 4) + number(n, 8) + bytes(8 * n),
        ][kind]
        count = int.from_bytes(data[16:24], "little") + 1
        extra = number(1, 8) + b"x" + value
        return data[:16] + number(count, 8) + extra + data[24:]
    return damaged_bytes(rng, data, marks)


# --- the readers ---


def put(path: pathlib.Path, data: bytes) -> None:
    """A new file: the old one may be open still, and mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def of_folder(
    name: str,
    damage: Callable[[Rng, bytes], bytes],
    read: Callable[[pathlib.Path], Any] = read_model,
) -> Any:
    """A file in a folder that is sound but for it."""

    def start(folder: pathlib.Path) -> Any:
        model = folder / "model"
        write_folder(model)
        read_model(model)
        sound = (model / name).read_bytes()
        others = sum(x.stat().st_size for x in model.iterdir()) - len(sound)

        def one(rng: Rng) -> tuple[int, Callable[[], None]]:
            data = damage(rng, sound)
            put(model / name, data)
            return len(data) + others, lambda: read(model)

        return one

    return start


def of_gguf(folder: pathlib.Path) -> Any:
    """A file of its own."""
    path = folder / "tiny.gguf"
    llm_models.write_gguf(path, small(), merges=["1 2"])
    read_model(path)
    sound, marks, reader = path.read_bytes(), [], gguf.GGUFReader(path)
    for field in [*reader.fields.values(), *(x.field for x in reader.tensors)]:
        at = field.offset
        for part in field.parts:
            marks += [(at, part.nbytes)] * (part.nbytes <= 8)
            at += part.nbytes

    def one(rng: Rng) -> tuple[int, Callable[[], None]]:
        data = damaged_gguf(rng, sound, marks)
        put(path, data)
        return len(data), lambda: read_model(path)

    return one


def of_index(folder: pathlib.Path) -> Any:
    """Two parts, and paths and links that lead astray."""
    from safetensors.numpy import load_file, save_file

    model, outside = folder / "model", folder / "outside"
    write_folder(model)
    tensors = load_file(model / "model.safetensors")
    names, files = sorted(tensors), ("1.safetensors", "2.safetensors")
    outside.mkdir()
    poison = {k: np.full_like(x, OUTSIDE) for k, x in tensors.items()}
    save_file(poison, outside / "model.safetensors")
    (model / "model.safetensors").unlink()
    for i, file in enumerate(files):
        save_file({k: tensors[k] for k in names[i::2]}, model / file)
    links = dict(loop="loop", out="../outside/model.safetensors", up="..", nothing="x")
    for name, to in links.items():
        (model / name).symlink_to(to)
    where = {name: files[i % 2] for i, name in enumerate(names)}
    sound = json.dumps({"metadata": {}, "weight_map": where})
    astray = [*links, *files, "", ".", "..", "/", "\0", "config.json", "x" * 5000]
    astray += [str(outside / "model.safetensors"), "../outside/model.safetensors"]
    astray += ["../model/1.safetensors", "./1.safetensors", "up/outside", "1\\..", None]
    index = model / "model.safetensors.index.json"
    put(index, sound.encode())
    read_model(model)

    def one(rng: Rng) -> tuple[int, Callable[[], None]]:
        if rng.random() < 0.5:
            data = damaged_text(rng, sound.encode())
        else:
            some = rng.sample(names, rng.randrange(1, len(names)))
            strays = {name: rng.choice(astray) for name in some}
            data = json.dumps({"weight_map": where | strays}).encode()
        put(index, data)
        return len(data) + 4096, lambda: read_model(model)

    return one


def of_checkpoints(folder: pathlib.Path) -> Any:
    """Two of them, of which the newest sound one is restored."""
    sound, here = folder / "sound", folder / "here"
    kept, states = Checkpoints(sound, {}), {}
    for step in (1, 2):
        x = jnp.arange(24.0).reshape(4, 6) * step
        states[step] = {"x": x, "n": jnp.int32(step), "k": jax.random.key(step)}
        kept.save(step, states[step])
    kept.close()
    plain = lambda s: [
        np.asarray(x) for x in (s["x"], s["n"], jax.random.key_data(s["k"]))
    ]
    files = sorted(x.relative_to(sound) for x in sound.rglob("*") if x.is_file())
    size = sum((sound / x).stat().st_size for x in files)

    def restore() -> None:
        opened = Checkpoints(here, {})
        try:
            found = opened.restore(states[1])
        finally:
            opened.close()
        if found is None:
            assert not [x for x in here.iterdir() if x.name in "12"], "passed over"
            return
        step, state = found
        pairs = zip(plain(state), plain(states[step]), strict=True)
        assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs), (
            "restored, but not what was saved"
        )

    def one(rng: Rng) -> tuple[int, Callable[[], None]]:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(sound, here)
        for _ in range(rng.choice((1, 1, 2, 4))):
            name, other = rng.choice(files), rng.choice(files)
            file, data, kind = (
                here / name,
                (sound / name).read_bytes(),
                rng.randrange(8),
            )
            if not file.exists():
                continue
            if kind < 4 and data:
                at = [(rng.randrange(len(data)), 8)]
                file.write_bytes(damaged_bytes(rng, data, at))
            elif kind < 5 and data[:1] == b"{":
                file.write_bytes(damaged_text(rng, data))
            elif kind == 5:
                file.write_bytes((sound / other).read_bytes())
            elif kind == 6:
                shutil.rmtree(file.parent) if rng.random() < 0.3 else file.unlink()
            else:
                file.write_bytes(rng.randbytes(rng.choice((0, 1, 100))))
        return size, restore

    return one


READERS = {
    "safetensors": Reader(0.45, of_folder("model.safetensors", damaged_safetensors)),
    "gguf": Reader(0.2, of_gguf),
    "index": Reader(0.1, of_index),
    "config": Reader(0.1, of_folder("config.json", damaged_text)),
    "tokenizer": Reader(
        0.15, of_folder("tokenizer.json", damaged_tokenizer, weights.read)
    ),
    "checkpoints": Reader(0, of_checkpoints),
}

# --- in a process of its own ---


class Shared(NamedTuple):
    """Seen by both processes, whatever becomes of one."""

    counts: Any  # by outcome
    at: Any  # the number of the input that is being read
    peak: Any  # bytes that reading took, at most, and times the file's size


def work(
    name: str, o: Options, numbers: range, shared: Shared, notes: pathlib.Path
) -> None:
    """Read them, one after another."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # panics say much
    np.seterr(all="ignore")
    home = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=home) as folder:
        path = pathlib.Path(folder)
        one = READERS[name].start(path)
        for warm in range(3):  # programs are compiled, and modules imported
            verdict(path, one(Rng(f"warm {warm}"))[1])
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        parent = multiprocessing.parent_process()
        for number in numbers:
            if parent and number % 100 == 0 and not parent.is_alive():
                return  # nobody is left to count
            shared.at[0] = number
            size, read = one(Rng(f"{o.seed} {name} {number}"))
            before = lowest()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL)
            outcome, why = verdict(path, read)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            took = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 0)
            if took * 1024 > BASE + TIMES * size:
                outcome, why = "memory", f"{took} KiB for {size} bytes"
            shared.peak[0] = max(shared.peak[0], took * 1024)
            if size > 2**17:  # of small ones, the allocator's steps say nothing
                shared.peak[1] = max(shared.peak[1], took * 1024 / size)
            note(shared, notes, name, number, outcome, why)


def lowest() -> int:
    """KiB in use; the highest mark begins from here."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def verdict(path: pathlib.Path, read: Callable[[], None]) -> tuple[str, str]:
    """How reading ends, and what was said."""
    try:
        read()
    except AssertionError as error:
        return "wrong", str(error)
    except BaseException as error:
        said, cause = f"{type(error).__name__}: {error}", error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "memory", said
            cause = cause.__cause__
        clear = isinstance(error, ValueError) and str(path) in said
        return "clear error" if clear else "unclear error", said
    return "read", ""


def note(
    shared: Shared, notes: pathlib.Path, name: str, number: int, outcome: str, why: str
) -> None:
    """Counts it; what should not be is written down."""
    shared.counts[OUTCOMES.index(outcome)] += 1
    if outcome in BAD:
        line = dict(reader=name, number=number, outcome=outcome, why=why[:300])
        with notes.open("a") as file:
            file.write(json.dumps(line) + "\n")


# --- in this one ---


def fuzz(name: str, o: Options, count: int, notes: pathlib.Path) -> dict[str, Any]:
    """One reader's inputs; its process is started again where it died."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # else each start imports JAX
    raw, end = context.RawArray, o.first + count
    shared = Shared(raw("q", len(OUTCOMES)), raw("q", [o.first]), raw("d", 2))
    start, first = time.monotonic(), o.first
    with tqdm(total=count, desc=name, unit="") as bar:
        while first < end:
            args = name, o, range(first, end), shared, notes
            process = context.Process(target=work, args=args)
            process.start()
            while process.is_alive():
                process.join(0.2)
                bar.update(sum(shared.counts) - bar.n)
            if process.exitcode == 0:
                break
            late = process.exitcode in (-signal.SIGPROF, -signal.SIGALRM)
            outcome = "hang" if late else "crash"
            note(shared, notes, name, shared.at[0], outcome, f"{process.exitcode}")
            first = shared.at[0] + 1
    counts = dict(zip(OUTCOMES, shared.counts, strict=True))
    row = {"reader": name, "inputs": sum(counts.values())} | counts
    row |= {"peak, MiB": shared.peak[0] / 2**20, "times its size": shared.peak[1]}
    return row | {"seconds": round(time.monotonic() - start)}


def main(o: Options) -> None:
    """Every reader, and the table."""
    if o.quick:
        o = dataclasses.replace(o, inputs=5000, checkpoints=20)
    o.out.mkdir(parents=True, exist_ok=True)
    notes = o.out / "notes.jsonl"
    notes.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    for name in o.readers or READERS:
        count = round(READERS[name].share * o.inputs) or o.checkpoints
        rows.append(fuzz(name, o, count, notes))
        paths = write(o, rows)  # what there is, should it be ended
    print(paths[0].read_text("utf-8"))
    print("written:", *paths, *([notes] if notes.exists() else []))


def write(o: Options, rows: list[dict[str, Any]]) -> list[pathlib.Path]:
    """The table, and everything as JSON."""
    bound = f"at most {BASE >> 20} MiB and {TIMES} times the file's size"
    text = f"jaxppo's examples; memory {bound}, {SECONDS} s of CPU time an input.\n\n"
    found = dict(seed=o.seed, base_bytes=BASE, times_size=TIMES, seconds=SECONDS)
    found |= dict(
        inputs=sum(row["inputs"] for row in rows),
        bad=sum(row[outcome] for row in rows for outcome in BAD),
        peak_mib=max(row["peak, MiB"] for row in rows),
        peak_times_size=max(row["times its size"] for row in rows),
    )
    table = measure.table(rows, rows[0])
    return measure.write(o.out, "readers", text + table, found | {"readers": rows})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
