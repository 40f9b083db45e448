"""Draws calls: good ones of every kind, and what may be odd about them."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import contract
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from cases import ARRAYS, Case, samples, tokens
from contract import is_float
from others import OTHERS
from test_errors import OUT_OF_RANGE, RANGES

import jaxppo

Given = dict[str, Any]

# From no leading axis to four, and some of no length. Few, for each is compiled.
SHAPES = [
    *[(), (4,), *[(3, 4)] * 4, (2, 1, 4), (2, 1, 1, 2, 4), (0,), (3, 0)],
]
# Their time goes into tracing, so they come up less often.
SLOW = {"token_log_probs": 0.03, "head_kl": 0.03, "gae": 0.2, "vtrace": 0.1}
GATES = {
    *("log_ratio", "sequence_log_ratio", "sequence_token_log_ratio"),
    *("trajectory_log_ratio", "segment_log_ratio", "ppo_loss"),
}
LINEAR = {  # what may be of any size: not logarithms, probabilities or parameters
    *("advantages", "rewards", "values", "old_values", "returns", "next_values"),
    *("bootstrap_value", "x", "per_token", "covariance", "statistic"),
}


class Call(NamedTuple):
    """A call, and what is odd about it."""

    name: str
    fn: Callable
    given: Given
    kind: str
    touched: set[str]
    clean: Given  # what the oracle is asked
    run: Callable | None = None  # in the function's place, by a test
    right: Callable | None = None  # of what it returned, where no oracle says


@functools.cache
def _batch(make: Callable, seed: int) -> Mapping[str, np.ndarray]:
    return make(np.random.default_rng([seed, 7]))


def draw(seed: int, index: int) -> Call:
    """The same call for the same numbers."""
    rng = np.random.default_rng([seed, index])
    if rng.random() < 0.02:
        return _other(rng)
    weights = np.array([SLOW.get(c.fn.__name__, 1.0) for c in ARRAYS])
    case = ARRAYS[rng.choice(len(ARRAYS), p=weights / weights.sum())]
    given = good(rng, case)
    for kind in rng.permutation([*ODD, *["plain"] * 3]):
        if kind == "plain":
            return Call(case.fn.__name__, case.fn, given, kind, set(), given)
        odd = dict(given)
        touched = ODD[kind](rng, case, odd)
        if touched is not None:
            # What is in the padding must not matter.
            clean = given if kind == "garbage in the padding" else odd
            return Call(case.fn.__name__, case.fn, odd, kind, touched, clean)
    raise AssertionError


def _other(rng: np.random.Generator) -> Call:
    """Of a function with arguments of its own: good, or with one that is not."""
    other = OTHERS[rng.integers(len(OTHERS))]
    given, touched = dict(other.good), set()
    if (chance := rng.random()) < 0.1:
        given["clip_esp"] = 0.2
        touched = {"clip_esp"}
    elif chance < 0.7:
        name = str(_pick(rng, list(other.bad)))
        given[name] = other.bad[name][rng.integers(len(other.bad[name]))]
        touched = {name, *(x if isinstance(x := given[name], dict) else ())}
    kind = "another function"
    made = Call(other.fn.__name__, other.fn, given, kind, touched, given)
    return made._replace(right=other.right)


# --- good calls ---


def good(rng: np.random.Generator, case: Case) -> Given:
    """One that the documentation allows, with a value the oracle can compute."""
    batch = _batch(case.batch, int(rng.integers(16)))
    shape = _shape(rng, case)
    given = {k: _take(rng, case, k, batch, shape) for k in _names(case)}
    given = _consistent(rng, given, batch, shape, case)
    given |= case.static
    if "group_size" in given:
        n = shape[{"prompt_mean": -2}.get(case.fn.__name__, 0 if case.rowed else -1)]
        given["group_size"] = int(rng.choice([k for k in (1, 2, 4) if n % k == 0]))
    parameters = inspect.signature(case.fn).parameters
    if "mask" in given:
        if rng.random() < 0.2 and parameters["mask"].default is None:
            given["mask"] = None
        else:
            kind = rng.choice(["bool", "bool", "int8", "uint32"])
            given["mask"] = given["mask"].astype(kind)
            if rng.random() < 0.05:
                given["mask"] = np.zeros_like(given["mask"])
    for name, value in case.hyper.items():
        given[name] = _number(rng, _hyper(rng, case, name, value))
    one = rng.choice(["float32"] * 6 + ["float16", "bfloat16", "float64", "mixed"])
    for name, x in given.items():
        if is_float(x) and not isinstance(x, np.generic) and name not in case.hyper:
            kind = rng.choice(["float32", "bfloat16"]) if one == "mixed" else one
            given[name] = x.astype(kind)
        if isinstance(x, np.ndarray) and rng.random() < 0.7 and name not in case.hyper:
            given[name] = jnp.asarray(_canonical(given[name]))
    return given


def _names(case: Case) -> list[str]:
    names = [*case.grads.split(), *case.constants.split()]
    return list(dict.fromkeys([*names, *["mask"] * case.masked]))


def _canonical(x: np.ndarray) -> np.ndarray:
    narrow = {"float64": "float32", "int64": "int32", "uint64": "uint32"}
    return x.astype(narrow.get(x.dtype.name, x.dtype.name))


def _shape(rng: np.random.Generator, case: Case) -> tuple[int, ...]:
    least = 0
    line = contract.SHAPES.get(case.fn.__name__, "")
    if " t" in line or " n" in line or case.column:
        least = 1
    if case.fn.__name__ in ("prompt_mean", "optimal_token_baseline"):
        least = 2
    most = 2 if case.fn.__name__ == "optimal_token_baseline" else 9
    # A head's words, and a row's actions, take the last axis but are not drawn here.
    fits = [s for s in SHAPES if least <= len(s) <= most]
    shape = fits[rng.integers(len(fits))]
    if case.fn.__name__ in ("prompt_mean", "optimal_token_baseline"):
        shape = (*shape[:-2], 4, shape[-1]) if shape[-2] else shape
    return shape


def _take(
    rng: np.random.Generator, case: Case, name: str, batch: Any, shape: tuple[int, ...]
) -> np.ndarray:
    """An array of these axes, out of the batch's rows and columns."""
    x = np.asarray(batch[name])
    if name in case.shared.split():
        return x[0, 0]
    rng = np.random.default_rng(int(np.prod([7, *shape]) + len(shape)))  # for all alike
    columns = batch["mask"].shape[1]
    rows = rng.integers(len(x), size=shape[:-1])
    if x.ndim == 1 and x.shape[0] == len(batch["mask"]):  # one a row
        return x[rows]
    at = rng.permutation(columns)[: shape[-1]] if shape else rng.integers(columns)
    if shape and shape[-1] > len(at):
        at = rng.integers(columns, size=shape[-1])
    at = np.array([0]) if name in case.column.split() else at
    return x[rows[..., None] if shape else rows, at]


def _consistent(rng, given, batch, shape, case):
    """Ends of episodes and group ids, whatever was taken."""
    if case.batch is samples and "group_ids" in given:
        given["group_ids"] = rng.integers(-1, 2, given["group_ids"].shape)
        if rng.random() < 0.2:
            given["group_ids"] = rng.integers(-1, 2, shape[-1:])
    return given


def _hyper(rng: np.random.Generator, case: Case, name: str, value: float) -> float:
    of = RANGES[case.fn].get(name, "(-inf, inf)")
    if rng.random() < 0.5 or (case.fn.__name__, name) in contract.FROM:
        return value
    ends = [float(of[1:-1].split(",")[k]) for k in (0, 1) if of[-k] in "[]"]
    if rng.random() < 0.15 and ends and name not in ("eps", "ddof"):
        return float(rng.choice(ends))
    moved = value * rng.uniform(0.7, 1.0)
    return moved if contract.inside(moved, of) else value


KINDS = (float, float, np.float32, np.float64, np.array, jnp.float32)


def _number(rng: np.random.Generator, value: float) -> Any:
    return KINDS[rng.integers(len(KINDS))](value)


# --- what may be odd ---


def _arrays(given: Given, keep: Callable[[str, Any], bool] = lambda k, x: True):
    return [
        k
        for k, x in given.items()
        if hasattr(x, "dtype") and np.shape(x) and k != "key" and keep(k, x)
    ]


def _pick(rng: np.random.Generator, names: list[str]) -> str | None:
    return names[rng.integers(len(names))] if names else None


def of_shape(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """An axis missing, too many, longer, of one, turned; or all alike, which may do."""
    name = _pick(rng, _arrays(given))
    if name is None:
        return None
    turns = {
        "first": lambda x: x[0],
        "last": lambda x: x[..., 0],
        "front": lambda x: x[None],
        "back": lambda x: x[..., None],
        "column": lambda x: x[..., :1],
        "row": lambda x: x[:1],
        "turned": lambda x: x.T,
        "number": lambda x: x.ravel()[0],
        "longer": lambda x: np.concatenate([x, x[..., :1]], -1),
        "taller": lambda x: np.concatenate([x, x[:1]], 0),
        "flat": lambda x: x.ravel(),
    }
    turn = turns[_pick(rng, list(turns))]
    every = rng.random() < 0.1
    for k in _arrays(given) if every else [name]:
        x = np.asarray(given[k])
        try:
            given[k] = turn(x)
        except (IndexError, ValueError):
            return None
        if given[k].shape == () or (0 in given[k].shape and 0 not in x.shape):
            given[k] = np.asarray(given[k])
    return set(_arrays(given)) | {name}


DTYPES = [
    *("int32", "int8", "bool", "complex64", "object", "U3", "uint8", "datetime64[s]"),
    *("float16", "float64", "float32", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
]


def of_dtype(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Another dtype, or no array at all."""
    name = _pick(rng, _arrays(given))
    if name is None:
        return None
    x = np.asarray(given[name])
    if rng.random() < 0.4:
        other = [x.tolist(), None, "x", 0.5, object(), {"a": x}, (x,), lambda: x]
        given[name] = other[rng.integers(len(other))]
        return {name}
    dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
    try:
        with np.errstate(all="ignore"):
            given[name] = (
                x.astype(np.float32).astype(dtype)
                if dtype.kind != "M"
                else (np.zeros(x.shape, dtype))
            )
    except (TypeError, ValueError):
        return None
    if dtype.kind in "iub" and name in contract.INTEGERS | {"mask"}:
        given[name] = x.astype(dtype)
    if name == "mask" and x.dtype == bool:
        given[name] = x.astype(dtype)
    narrow = dtype.name.startswith(("float8", "float16"))
    return None if narrow and name not in LINEAR else {name}


def of_mask(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Floats, fractions, lists, None, another length; or all, none, negative."""
    if "mask" not in given:
        return None
    x = np.asarray(given["mask"] if given["mask"] is not None else True)
    if not x.shape:
        return None
    other = [
        *(x.astype(np.float32), x * 0.5, x.tolist(), None, x[..., :1], x[:1], x.T),
        *(True, np.ones_like(x), np.zeros_like(x), x.astype(np.int32) * -7, x[None]),
        *(x.astype(np.uint8) * 255, x.astype(complex), x.astype(str), "all"),
    ]
    given["mask"] = other[rng.integers(len(other))]
    return {"mask"}


def of_number(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """A hyper-parameter out of its range, or no number, or several."""
    names = [k for k in RANGES.get(case.fn, {}) if not np.shape(given.get(k))]
    name = _pick(rng, names)
    if name is None:
        return None
    of = contract.interval(case.fn, name, given)
    bad = OUT_OF_RANGE.get(of) or [math.nan]
    x = float(bad[rng.integers(len(bad))])
    given[name] = [
        *(x, np.float32(x), np.float64(x), np.array(x), jnp.float32(x)),
        *("0.2", None, [0.2], np.full(3, 0.2), 0.2j, np.complex64(1), np.array("a")),
        *(10**400, -(10**400), {}, jnp.ones((1, 1)), np.array(None), True, 1),
    ][rng.integers(19)]
    return {name, *(b for (f, k), b in contract.FROM.items() if f == case.fn.__name__)}


def of_names(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """A name misspelt, one missing, one too many."""
    name = str(_pick(rng, list(given)))
    change = rng.integers(3)
    if change == 0:
        given[name[:-1] + "z"] = given.pop(name)
        return {name, name[:-1] + "z"}
    if change == 1:
        del given[name]
        return {name, "group_size", "group_ids"}
    given["clip_esp"] = 0.2
    return {"clip_esp"}


def of_company(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Arguments that exclude, or need, each other; sizes that do not divide."""
    parameters = inspect.signature(case.fn).parameters
    ways = []
    if "group_ids" in parameters:
        first = next(iter(given.values()))
        ids = np.zeros(first.shape[: 1 if case.rowed else None], int)
        ways += [{"group_size": 2, "group_ids": ids}]
    if "group_size" in parameters:
        sizes = 3, 0, -2, 2.0, True, "2", None, np.int64(2), 5
        ways += [{"group_size": sizes[rng.integers(9)]}, {"group_size": None}]
    if "next_values" in parameters:
        x = given["rewards"]
        ways += [{"next_values": x, "bootstrap_value": x[..., 0] if x.size else None}]
    ways += [{k: "k3"} for k in contract.FUNCTIONS if k in parameters]
    if "axis" in parameters:
        ways += [{"axis": axis} for axis in (5, -6, "time", 1.0, True)]
    if case.fn is jaxppo.ppo_loss:
        ways += [{k: None} for k in given if parameters[k].default is None]
        ways += [
            {"values": None, "returns": None},
            {"values": None, "value_coef": -1.0},
        ]
        ways += [{"values": None, "returns": None, "old_values": None}]
    if not ways:
        return None
    way = ways[rng.integers(len(ways))]
    given.update(way)
    if case.fn is jaxppo.ppo_loss:
        return {*way, "value_clip_eps", "entropy_coef", "kl_coef", "values", "returns"}
    return set(way) | {"group_size", "group_ids"} & parameters.keys()


def _set(x: Any, where: Any, value: float) -> np.ndarray:
    out = np.array(x)
    out[where] = value
    return out


GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -1e9)


def of_padding(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Garbage wherever nothing counts."""
    mask = given.get("mask")
    if mask is None or not np.shape(mask) or np.all(mask):
        return None
    off = np.asarray(mask) == 0
    names = [
        k
        for k in _arrays(given, lambda k, x: is_float(x))
        if given[k].shape[: off.ndim] == off.shape
    ]
    if not names:
        return None
    with np.errstate(all="ignore"):
        for name in names:
            given[name] = _set(given[name], off, GARBAGE[rng.integers(5)])
    return set(names)


def _valid(rng: np.random.Generator, given: Given, x: Any) -> Any:
    """A place that counts, of those an array has."""
    mask = given.get("mask")
    places = np.ones(x.shape, bool)
    if mask is not None and np.shape(mask) == x.shape[: np.ndim(mask)]:
        keep = np.asarray(mask) != 0
        places &= keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim))
    elif mask is not None:  # one a sequence
        return None
    found = np.argwhere(places)
    return tuple(found[rng.integers(len(found))]) if len(found) else None


# A discount or lambda of 0 forgets what it led to; a flag is 0 or 1 of any number.
QUIET = {"clip_fraction", "clip_fraction_lower", "clip_fraction_upper"}
QUIET |= {"bound_fraction", "two_hot", "hl_gauss", "optimal_token_baseline"}


BY_COMPANY = jaxppo.pass_at_k_advantages, jaxppo.leave_one_out_std


def of_nan(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """A NaN that counts: it may not be hidden."""
    after = ("next_values", "bootstrap_value", "discounts", "lambda_", "old_values")
    names = _arrays(given, lambda k, x: is_float(x) and k not in after)
    name = _pick(rng, [k for k in names if k not in case.shared.split()])
    if name is None or case.fn.__name__ in QUIET:
        return None
    if case.batch is tokens and "discounts" in given:  # a terminal step forgets
        return None
    where = _valid(rng, given, given[name])
    small = given.get("group_size", 1) < 4 or given["mask"] is not None
    empty = any(0 in np.shape(x) for x in given.values() if hasattr(x, "shape"))
    if where is None or empty or (small and case.fn in BY_COMPANY):
        return None  # a sample without others has 0, whatever its reward
    if name == "weights" and given.get("group_ids") is not None:
        return None  # a sample alone in its group is not weighed
    targets, words = given.get("targets"), given.get("unembed")
    if name == "hidden" and targets is not None and words is not None:
        if not 0 <= targets[where[:-1]] < max(words.shape):
            return None  # a label such as -100: the token is left out
    given[name] = _set(given[name], where, np.nan)
    return {name}


def of_size(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Finite numbers of absurd size, large and small."""
    names = _arrays(given, lambda k, x: k in LINEAR and is_float(x))
    names = [k for k in names if case.batch in (tokens, samples)]
    if not names:
        return None
    scale = 10.0 ** rng.choice([-30, -25, -20, 15, 20, 25, 30])
    names = names if rng.random() < 0.5 else [str(_pick(rng, names))]
    for name in names:
        given[name] = np.float32(np.asarray(given[name], np.float64) * scale)
    return set(names)


def of_distance(rng: np.random.Generator, case: Case, given: Given) -> set[str] | None:
    """Log-probs that are absurd, or say that it never happens, through the gate."""
    if case.fn.__name__ not in GATES:
        return None
    name = ("log_probs", "old_log_probs")[rng.integers(2)]
    where = _valid(rng, given, given[name]) if np.shape(given[name]) else None
    if where is None:
        return None
    value = (-np.inf, -1e30, -1e3, -100.0)[rng.integers(4)]
    given[name] = _set(np.asarray(given[name]).astype(np.float32), where, value)
    return {name}


ODD: dict[str, Callable] = {
    "a shape": of_shape,
    "a dtype": of_dtype,
    "a mask": of_mask,
    "a number": of_number,
    "a name": of_names,
    "arguments together": of_company,
    "garbage in the padding": of_padding,
    "a NaN that counts": of_nan,
    "an absurd size": of_size,
    "an absurd log-prob": of_distance,
}
