"""What the documentation promises of a call, decided without the library.

Which shapes fit, which dtypes and numbers are allowed, which arguments need each
other, and what the float64 oracles of `tests/oracles.py` say the answer is. Nothing
here imports jaxppo's checks: where the library takes what this refuses, or the other
way round, one of the two is wrong.
"""

import inspect
import math
import numbers
import pathlib
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

import cases
import oracles
from test_errors import RANGES

# --- shapes ---

# `*s` any axes, `*#s` the same or with 1 in place of the last; `*b t` needs a time
# axis; `|` is or. What a function's line leaves out is `*s`, like its first array.
SHAPES = {
    "sequence_mean": "per_token:*b t",
    "sequence_sum": "per_token:*b t",
    "prompt_mean": "per_token:*b n t",
    **dict.fromkeys(
        [
            *("sequence_log_ratio", "sequence_token_log_ratio"),
            *("trajectory_log_ratio", "segment_log_ratio"),
        ],
        "log_probs:*b t",
    ),
    "geometric_mean_surrogate": "log_ratio:*b t, advantages:*#s",
    "vespo_weights": "log_ratio:*b t, advantages:*#s",
    "off_policy_sequence_mask": "log_ratio:*b t, advantages:*#s",
    "correction_metrics": "log_ratio:*b t",
    "length_adaptive_lambda": "mask:*b t",
    "gae": "rewards:*b t, bootstrap_value:*b, discounts:*#s|, lambda_:*#s|",
    "vtrace": "log_ratio:*b t, bootstrap_value:*b, discounts:*#s|, lambda_:*#s|",
    "discounted_returns": "rewards:*b t, bootstrap_value:*b, discounts:*#s|",
    "rejection_mask": "mask:*s, statistic:*#s",
    "normalised_weights": "weights:*s",
    "clip_cov_mask": "covariance:*s, key:2",
    **dict.fromkeys(
        [
            *("group_advantages", "leave_one_out_advantages", "leave_one_out_std"),
            *("pass_at_k_advantages", "varied_groups"),
        ],
        "rewards:*b n, weights:*s, group_ids:*s|n",
    ),
    "optimal_token_baseline": "returns:n t, weights:*s, group_ids:n",
    # rows: a distribution each
    "two_hot": "x:*s, support:k",
    "hl_gauss": "x:*s, edges:k",
    "categorical_value": "logits:*r k, target_probs:*s, mask:*r",
    "expected_value": "logits:*r k, support:k",
    "quantile_value": "quantiles:*r k, returns:*r, mask:*r",
    "categorical": "logits:*r k, actions:*r, mask:*r",
    "categorical_kl": "logits:*r k, mask:*r",
    "diagonal_normal": "mean:*r k, log_std:*s|k, mask:*r",
    "tanh_normal": "mean:*r k, log_std:*s|k, mask:*r",
    "normal_kl": "mean:*r k, mask:*r",
    "beta": "alpha:*r k, mask:*r",
    "beta_kl": "alpha:*r k, mask:*r",
    "token_log_probs": "hidden:*r d, unembed:v d, targets:*r, mask:*r, "
    "temperature:*#r|, bias:v",
    "head_kl": "hidden:*r d, unembed:v d, ref_hidden:*r e, ref_unembed:v e, mask:*r, "
    "temperature:*#r|, bias:v, ref_bias:v",
    "selective_log_softmax": "logits:*r v, targets:*r, mask:*r, temperature:*#r|",
}
PER_SEQUENCE = {"advantages", "weights"}  # where no line says otherwise


def shapes_fit(fn: str, arrays: Mapping[str, Any], vocab_last: bool = False) -> bool:
    """Whether all of these arrays have a documented shape."""
    line = SHAPES.get(fn, "")
    specs = dict(part.strip().split(":") for part in line.split(",") if part)
    bound: dict[str, Any] = {}
    # Those with a shape of their own come first: they bind what others are held to.
    for name in [*specs, *(k for k in arrays if k not in specs)]:
        if name not in arrays:
            continue
        default = "*#s" if name in PER_SEQUENCE and not line else "*s"
        spec, shape = specs.get(name, default), arrays[name].shape
        shape = shape[::-1] if vocab_last and "unembed" in name else shape
        if not any(_fits(choice, shape, bound) for choice in spec.split("|")):
            return False
        bound.setdefault("s", arrays[name].shape)
    return True


def _fits(spec: str, shape: tuple[int, ...], bound: dict[str, Any]) -> bool:
    names = spec.split()
    if names and names[0].startswith("*"):
        lead, names = names[0].lstrip("*#"), names[1:]
        if len(shape) < len(names):
            return False
        head = shape[: len(shape) - len(names)]
        want = bound.setdefault(lead, head)
        column = "#" in spec and want and head == (*want[:-1], 1)
        if head != want and not column:
            return False
        shape = shape[len(head) :]
    if len(shape) != len(names):
        return False
    sizes = [
        bound.setdefault(k, n) if k.isalpha() else int(k) for k, n in _zip(names, shape)
    ]
    some = all(n for k, n in _zip(names, shape) if k in "kv")  # actions, words
    return some and sizes == list(shape)


def _zip(x: Any, y: Any) -> Any:
    return zip(x, y, strict=True)


# --- dtypes, numbers, and what needs each other ---

INTEGERS = {"actions", "targets", "lengths", "group_ids"}
COUNTS = {"group_size"}
FUNCTIONS = {"estimator", "kl", "aggregate", "error"}
SWITCHES = {
    *("keepdims", "scale_by_std", "turn_aligned", "zero_tail", "vocab_last"),
    *("mode", "vocab_block", "token_block", "cache_bytes"),
}
NUMBERS_OR_ARRAYS = {"discounts", "lambda_", "temperature"}
FROM = {  # a bound that may not lie below another
    ("truncated_weights", "cap"): "floor",
    ("band_weights", "high"): "low",
    ("cispo", "high"): "low",
}


def interval(fn: Any, name: str, given: Mapping[str, Any]) -> str | None:
    """A number's documented range."""
    if (fn.__name__, name) in FROM:
        lower = FROM[fn.__name__, name]
        low = given.get(lower, inspect.signature(fn).parameters[lower].default)
        if not (is_number(low) and inside(low, "[-inf, inf]")):
            low = 0.0
        strict = fn.__name__ == "truncated_weights" and not low
        return f"{'(' if strict else '['}{float(low)}, inf]"
    found = RANGES.get(fn, {}).get(name)
    return "(0, inf)" if found is None and name == "temperature" else found


def is_number(x: Any) -> bool:
    """A real number, whatever holds it."""
    if isinstance(x, (bool, numbers.Real)):
        return True
    kind = getattr(getattr(x, "dtype", None), "kind", "O")
    return np.shape(x) == () and (kind in "fiub" or is_float(x))


def is_float(x: Any) -> bool:
    """Of a floating-point dtype, of any width."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, np.floating)


def is_integer(x: Any) -> bool:
    """Of an integer dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, np.integer)


def inside(x: Any, of: str) -> bool:
    """Whether a number lies in an interval."""
    low, high = map(float, of[1:-1].split(","))
    try:
        x = float(x)
    except OverflowError:  # an integer that no float holds
        return False
    above = low <= x if of[0] == "[" else low < x
    return above and (x <= high if of[-1] == "]" else x < high)


def offences(fn: Any, given: Mapping[str, Any]) -> set[str]:
    """The arguments for which the documentation refuses a call; none: it is good."""
    parameters = inspect.signature(fn).parameters
    out = {k for k in given if k not in parameters}
    required = (k for k, p in parameters.items() if p.default is p.empty)
    out |= {k for k in required if k not in given}
    arrays = {}
    for name, x in given.items():
        if name in out:
            continue
        if x is None:
            out |= {name} if parameters[name].default is not None else set()
        elif name in FUNCTIONS:
            out |= set() if callable(x) else {name}
        elif name == "axis":
            out |= _axis(x, given)
        elif name in COUNTS:
            good = isinstance(x, (int, np.integer)) and not isinstance(x, bool)
            out |= set() if good and x >= 1 else {name}
        elif of := _as_number(fn, name, x, given):
            out |= set() if is_number(x) and inside(x, of) else {name}
        elif name not in SWITCHES:
            arrays[name] = x
    out |= {k for k, x in arrays.items() if k != "key" and not _right_kind(fn, k, x)}
    if out:
        return out
    if not shapes_fit(fn.__name__, arrays, given.get("vocab_last", False)):
        return set(arrays)
    for name in {"support", "edges"} & arrays.keys() if "x" in arrays else ():
        grid = np.asarray(arrays[name], np.float32)
        out |= set() if len(grid) > 1 and np.all(np.diff(grid) > 0) else {name}
    return out | _together(fn, {k: x for k, x in given.items() if x is not None})


def _as_number(fn: Any, name: str, x: Any, given: Mapping[str, Any]) -> str | None:
    if name in NUMBERS_OR_ARRAYS and np.shape(x):
        return None
    if name in NUMBERS_OR_ARRAYS and isinstance(x, (list, tuple)):
        return None
    return interval(fn, name, given)


def _right_kind(fn: Any, name: str, x: Any) -> bool:
    if name in INTEGERS and (name != "actions" or fn.__name__ == "categorical"):
        return is_integer(x)
    if name == "mask":
        return is_integer(x) or getattr(x, "dtype", None) == np.bool_
    return is_float(x)


def _axis(x: Any, given: Mapping[str, Any]) -> set[str]:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        return {"axis"}
    ndim = np.ndim(given.get("x"))
    return set() if -ndim <= x < ndim else {"axis"}


def _together(fn: Any, given: Mapping[str, Any]) -> set[str]:
    """Arguments that need or exclude each other, and sizes that must divide."""
    out: set[str] = set()
    name = fn.__name__
    if {"bootstrap_value", "next_values"} <= given.keys():
        out |= {"bootstrap_value", "next_values"}
    if "group_ids" in inspect.signature(fn).parameters:
        if ("group_size" in given) == ("group_ids" in given):
            return {"group_size", "group_ids"}
    if "group_size" in given:
        first = next(x for x in given.values() if np.shape(x))
        axis = dict(prompt_mean=-2, optimal_token_baseline=0).get(name, -1)
        out |= {"group_size"} if first.shape[axis] % given["group_size"] else set()
    if name == "ppo_loss":
        if ("values" in given) != ("returns" in given):
            out |= {"values", "returns"}
        for coef, arrays in dict(
            value_clip_eps=("values", "old_values"),
            entropy_coef=("entropy",),
            kl_coef=("ref_log_probs",),
        ).items():
            if given.get(coef, 0) != 0 and not set(arrays) <= given.keys():
                out |= {coef}
    return out


# --- the answer ---


class _Exact:
    """`math`, but of an exponential out of reach the limit."""

    def __getattr__(self, name: str) -> Any:
        return getattr(math, name)

    @staticmethod
    def exp(x: float) -> float:
        return math.exp(x) if x < 709 else math.inf if x == x else x


oracles.math = _Exact()
UNDEFINED = ZeroDivisionError, ValueError, statistics.StatisticsError, IndexError


def answer(fn: Any, given: Mapping[str, Any]) -> Any:
    """The oracle's, in float64; None where the formula has none."""
    given = {
        k: exact(x, single=interval(fn, k, given) is not None or k in COUNTS)
        for k, x in given.items()
        if x is not None
    }
    parameters = inspect.signature(fn).parameters
    arrays = (x for k, x in given.items() if k != "key")
    first = next(x for x in arrays if isinstance(x, np.ndarray))
    if fn.__name__ in ("rejection_mask", "length_adaptive_lambda"):
        first = given["mask"]
    rows = (
        first.shape[:-1]
        if "mask:*r" in SHAPES.get(fn.__name__, "")
        or (fn.__name__ in ("token_log_probs", "head_kl", "selective_log_softmax"))
        else first.shape
    )
    if "mask" in parameters:
        mask = np.asarray(given.get("mask", np.ones(rows, bool)))
        given["mask"] = mask.astype(bool)
    if "temperature" in parameters and fn.__name__ != "soft_gated_surrogate":
        given["temperature"] = np.broadcast_to(given.get("temperature", 1.0), rows)
    if fn.__name__ == "prompt_mean":  # groups are of consecutive rows
        rows = math.prod(first.shape[:-1])
        for name in ("per_token", "mask"):
            given[name] = given[name].reshape(rows, first.shape[-1])
    line = SHAPES.get(fn.__name__, "")
    alone = "*r" in line and not rows  # a row without a batch: of one
    if alone:
        grids = {
            part.split(":")[0].strip() for part in line.split(",") if "*" not in part
        }
        spread = lambda k, x: isinstance(x, np.ndarray) and k not in grids
        given = {k: x[None] if spread(k, x) else x for k, x in given.items()}
    try:
        with np.errstate(all="ignore"):
            out = cases.oracle(fn)(**given)
    except UNDEFINED:
        return None
    return jax.tree.map(lambda x: np.float64(x)[0] if alone else np.float64(x), out)


def exact(x: Any, *, single: bool) -> Any:
    """An argument as the oracles take it: what float32 holds of it, in float64."""
    if callable(x):
        return cases.oracle(x)
    if single and not np.shape(x):
        whole = np.issubdtype(getattr(x, "dtype", type(x)), np.integer)
        return x if isinstance(x, bool) else int(x) if whole else float(x)
    if not hasattr(x, "dtype"):
        return x
    if is_float(x) and x.dtype != np.float64:
        with np.errstate(all="ignore"):
            return np.asarray(x).astype(np.float32).astype(np.float64)
    return np.asarray(x)


def moved(fn: Any, given: Mapping[str, Any], want: list[np.ndarray]) -> list[Any]:
    """How far the answer goes when its inputs are rounded otherwise, in the last bit.

    NaN where it may be anything: a choice that hangs on a rounding.
    """
    rng = np.random.default_rng(0)
    slack = [np.zeros(x.shape) for x in want]
    for _ in range(20):
        out = answer(fn, {k: _jittered(rng, fn, k, x, given) for k, x in given.items()})
        for k, x in enumerate(jax.tree.leaves(out) if out is not None else []):
            with np.errstate(all="ignore"):
                step = np.abs(np.asarray(x).reshape(want[k].shape) - want[k])
            slack[k] = np.maximum(slack[k], step)
    return slack


def _jittered(
    rng: np.random.Generator, fn: Any, name: str, x: Any, given: Mapping[str, Any]
) -> Any:
    if is_float(x) and np.shape(x):
        exactly = np.asarray(x).astype(np.float32).astype(np.float64)
        sign = rng.choice([-1, 1], exactly.shape)
        with np.errstate(all="ignore"):
            return np.where(exactly == 0, 0, exactly * (1 + sign * 2.0**-23))
    of = interval(fn, name, given)
    if of and is_number(x) and not isinstance(x, bool):
        there = float(x) * (1 + rng.choice([-1, 1]) * 2.0**-23)
        return there if inside(there, of) else x
    return x
