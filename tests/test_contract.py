"""What every public function promises, row by row of the table."""

import inspect
import re

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from cases import (
    ARRAYS,
    CASES,
    MASKED,
    PUBLIC,
    TYPES,
    Case,
    cast,
    each_case,
    each_masked_case,
    gradient,
    is_floating,
    jitted,
    jitted_gradient,
    literally,
)

import jaxppo

each_public = pytest.mark.parametrize("name", sorted(PUBLIC))
each_rowwise_case = pytest.mark.parametrize(
    "case", [case for case in ARRAYS if not case.reduces], ids=str
)
each_tunable_case = pytest.mark.parametrize(
    "case", [case for case in ARRAYS if case.hyper], ids=str
)


def assert_same(got, expected, tolerance=0.0):
    """Leaf by leaf: bit by bit, or relative to its largest entry, or what it sums."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for got, expected in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        size = np.abs(expected)
        scale = tolerance * np.max(size, initial=1, where=np.isfinite(size))
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=scale)


def on_rows(f, inputs, case):
    """f of the inputs that have batch axes, beside those that have none."""
    return {k: x if k in case.shared.split() else f(x) for k, x in inputs.items()}


# --- the table is whole ---


def test_every_public_function_has_a_row():
    assert {case.fn.__name__ for case in CASES} == set(PUBLIC)
    assert set(TYPES) < set(vars(jaxppo))


@each_public
def test_every_parameter_is_in_a_row(name):
    rows = [case for case in ARRAYS if case.fn.__name__ == name]
    given = {"mask"}.union(*([*c.inputs(), *c.hyper, *c.static] for c in rows))
    given |= {"vocab_axis", "token_spec"}  # test_head_sharding.py
    assert not rows or given >= set(inspect.signature(PUBLIC[name]).parameters)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_hyper_parameter_is_its_default(case):
    parameters = inspect.signature(case.fn).parameters
    for name, value in {**case.hyper, **case.static}.items():
        assert value != parameters[name].default


# --- it can be read ---


@each_public
def test_docstring(name):
    """A summary, every argument in order, what is raised, and an example."""
    doc = inspect.getdoc(PUBLIC[name])
    sections = dict(re.findall(r"^(\w+):\n((?:(?:  .*)?\n?)*)", doc, re.MULTILINE))
    expected = ["Args", "Returns", "Raises", "Example"]
    if name == "check_progress":  # it returns nothing
        expected.remove("Returns")
    assert list(sections) == expected
    assert re.match(r"\S.*[.:]", doc)
    described = re.findall(r"^  (\w+): ", sections["Args"], re.MULTILINE)
    assert described == list(inspect.signature(PUBLIC[name]).parameters)
    assert f"jaxppo.{name}(" in sections["Example"]


ALIASES = ["LossFn", "Metric", "Metrics"]  # they have no docstring, but a comment


@pytest.mark.parametrize("name", sorted(set(TYPES) - set(ALIASES)))
def test_docstring_of_a_type(name):
    """A summary, its attributes in order, and an example."""
    doc = inspect.getdoc(vars(jaxppo)[name])
    sections = dict(re.findall(r"^(\w+):\n((?:(?:  .*)?\n?)*)", doc, re.MULTILINE))
    fields = list(vars(vars(jaxppo)[name]).get("__annotations__", {}))
    assert list(sections) == [*(["Attributes"] if fields else []), "Example"]
    described = re.findall(r"^  (\w+): ", sections.get("Attributes", ""), re.MULTILINE)
    assert described == fields
    assert "jaxppo." in sections["Example"] and ">>> " in sections["Example"]


@each_public
def test_signature(name):
    """Data, then the mask, by position; everything after it by keyword."""
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    data = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p not in data)
    assert all(p.default is p.empty or p is data[-1] for p in data)
    assert all(p.name == "mask" for p in data if p.default is not p.empty)
    assert PUBLIC[name].__module__.startswith("jaxppo._")


# --- it is a function of arrays, however it is called ---


def test_the_tests_check_annotated_shapes():
    with pytest.raises(jaxtyping.TypeCheckError):
        jaxppo.squared_value(jnp.ones((2, 3)), jnp.ones((3, 2)))


@each_case
def test_jit_is_eager(case):
    inputs = jax.tree.map(jnp.asarray, case.inputs(0, np.float32))
    assert_same(jitted(case)(**inputs), case(**inputs), 1e-6)


@each_case
def test_numpy_arrays_are_arrays(case, unchecked):
    inputs = case.inputs()
    usual = jax.dtypes.canonicalize_dtype(np.float64)  # float32 without x64
    assert_same(case(**inputs), jitted(case)(**cast(inputs, usual)), 1e-6)


@each_case
def test_vmap_is_a_loop(case):
    batches = [case.inputs(seed, np.float32) for seed in range(3)]
    axes = {k: None if k in case.shared.split() else 0 for k in batches[0]}
    stacked = {
        k: batches[0][k] if axis is None else np.stack([b[k] for b in batches])
        for k, axis in axes.items()
    }
    mapped = jax.jit(jax.vmap(lambda inputs: case(**inputs), (axes,)))(stacked)
    for i in range(3):
        one = on_rows(lambda x, i=i: x[i], stacked, case)
        ours = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert_same(ours, jitted(case)(**one), 1e-6)


@each_rowwise_case
def test_vmap_is_the_batch(case):
    """So a sequence alone, without batch axes, is what it is among others."""
    inputs = case.inputs(0, np.float32)
    axes = {k: None if k in case.shared.split() else 0 for k in inputs}
    mapped = jax.jit(jax.vmap(lambda inputs: case(**inputs), (axes,)))
    assert_same(mapped(inputs), jitted(case)(**inputs), 1e-6)


@pytest.mark.parametrize("case", [case for case in ARRAYS if not case.rowed], ids=str)
def test_any_leading_axes(case):
    inputs = case.inputs(0, np.float32)
    row = on_rows(lambda x: x[:1], inputs, case)
    for lead, inputs in [((), row), ((2, 2), inputs), ((1, 4, 1), inputs)]:
        fold = lambda x, lead=lead: x.reshape((*lead, *x.shape[1:]))
        got, flat = (jitted(case)(**x) for x in (on_rows(fold, inputs, case), inputs))
        unfolded = jax.tree.map(lambda x, like: x.reshape(like.shape), got, flat)
        assert_same(unfolded, flat, 1e-6)
        for x, like in zip(jax.tree.leaves(got), jax.tree.leaves(flat), strict=True):
            assert x.shape == (fold(like).shape if like.ndim else ())


# --- what is masked is not there ---


def gated(case, gate):
    """A term of the log-ratio: the gate before it, an aggregator after it."""

    def fn(log_probs, old_log_probs, mask, **inputs):
        x = gate(log_probs, old_log_probs, mask)
        return jaxppo.token_mean(case(log_ratio=x, **inputs), mask)

    rest = f"{case.grads} {case.constants}".replace("log_ratio", "")
    note = f"{case}-{gate.__name__}"
    return Case(fn, "log_probs", f"old_log_probs {rest}", column=case.column, note=note)


GATES = jaxppo.log_ratio, jaxppo.sequence_log_ratio
UNMASKED = [case for case in ARRAYS if not case.masked and "log_ratio" in case.inputs()]
# These take a second array that must have come through a gate, too.
UNMASKED = [
    case
    for case in UNMASKED
    if case.fn not in (jaxppo.importance_weighted_kl, jaxppo.trust_region_mask)
]
GATED = [gated(case, g) for case in UNMASKED for g in GATES]


def dirty(x, mask, garbage):
    """x with garbage wherever no token counts."""
    if x.ndim < mask.ndim or x.shape[mask.ndim - 1] == 1:  # one for each sequence
        mask = mask.any(-1)
    keep = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return np.where(keep, x, np.array(garbage if is_floating(x) else -100, x.dtype))


@pytest.mark.parametrize("case", MASKED + GATED, ids=str)
def test_what_is_masked_has_no_influence(case):
    clean = case.inputs(0, np.float32)
    mask = clean["mask"]
    rows = {k: x for k, x in clean.items() if k not in ("mask", *case.shared.split())}
    both = literally(lambda **inputs: (case(**inputs), gradient(case)(**inputs)))
    value, grads = both(**clean)
    for garbage in (np.nan, np.inf, -np.inf, -1e9):
        bad = {k: dirty(x, mask, garbage) for k, x in rows.items()}
        assert_same(both(**clean | bad), (value, grads))
    for name in rows.keys() & grads.keys():
        np.testing.assert_array_equal(grads[name], dirty(grads[name], mask, 0.0))


@each_masked_case
def test_nonzero_counts(case):
    inputs = case.inputs(0, np.float32)
    expected, mask = jitted(case)(**inputs), inputs["mask"]
    for integers in (np.int8(mask) * -3, np.uint32(mask) * 2**31):
        assert_same(jitted(case)(**inputs | {"mask": integers}), expected)


# But for those that take nothing without one.
@pytest.mark.parametrize(
    "case", [case for case in MASKED if "mask" not in case.constants.split()], ids=str
)
def test_without_a_mask_everything_counts(case):
    inputs = case.inputs(0, np.float32)
    everything = jitted(case)(**inputs | {"mask": np.ones_like(inputs["mask"])})
    assert_same(jitted(case)(**inputs | {"mask": None}), everything, 1e-6)


# --- dtypes ---


def dtypes(case, inputs):
    names = {x.dtype.name for x in jax.tree.leaves(jax.eval_shape(case, **inputs))}
    return names - {"bool"}


@each_case
def test_half_precision_comes_up(case):
    inputs = case.inputs(0, jnp.bfloat16)
    exact = cast(inputs, np.float32)
    assert_same(jitted(case)(**inputs), jitted(case)(**exact), 1e-6)
    for name, grad in jitted_gradient(case)(**inputs).items():
        assert grad.dtype == jnp.bfloat16
        rounded = jitted_gradient(case)(**exact)[name].astype(jnp.bfloat16)
        grad, rounded = np.float32(grad), np.float32(rounded)
        # What goes into a product is rounded, too: an error of the sum's size.
        atol = 2**-7 * np.max(np.abs(rounded)) if case.products else 1e-6
        np.testing.assert_allclose(grad, rounded, rtol=2**-7, atol=atol)


@each_case
def test_dtypes(case, x64):
    """Float32 at least, and float64 stays, whatever else is beside it."""
    inputs = case.inputs()
    assert dtypes(case, inputs) <= {"float64"}
    if not any(map(is_floating, inputs.values())):
        return
    for narrow in ("float16", "bfloat16", "float32"):
        narrowed = cast(inputs, narrow)
        assert dtypes(case, narrowed) <= {"float32"}
        for name in filter(lambda name: is_floating(inputs[name]), inputs):
            mixed = narrowed | {name: inputs[name].astype("float32")}
            assert dtypes(case, mixed) <= {"float32"}, name
            mixed = narrowed | {name: inputs[name].astype("float64")}
            assert len(dtypes(case, mixed)) <= 1, name


# --- hyper-parameters ---


def scaled(hyper, factors=(1.0, 0.9, 1.1)):
    return [{name: value * by for name, value in hyper.items()} for by in factors]


@each_tunable_case
def test_hyper_parameters_can_be_swept(case):
    inputs = jax.tree.map(jnp.asarray, case.inputs(0, np.float32))
    settings = scaled(case.hyper)
    swept = {
        name: jnp.array([hyper[name] for hyper in settings]) for name in case.hyper
    }
    mapped = jax.jit(jax.vmap(lambda hyper: case(**hyper, **inputs)))(swept)
    for i, hyper in enumerate(settings):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert_same(one, case(**hyper, **inputs), 1e-6)


@each_tunable_case
def test_hyper_parameters_do_not_retrace(case):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(inputs, hyper):
        return case(**inputs, **hyper)

    for seed, hyper in enumerate(scaled(case.hyper)):
        call(case.inputs(seed, np.float32), hyper)


@each_tunable_case
def test_the_kind_of_a_number_does_not_matter(case, x64):
    inputs = jax.tree.map(jnp.asarray, case.inputs(0, np.float32))
    expected = case(**inputs)
    for kind in (np.float64, np.float32, jnp.float64):
        hyper = {name: kind(value) for name, value in case.hyper.items()}
        assert_same(case(**inputs, **hyper), expected, 1e-6)
