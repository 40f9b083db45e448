"""Bad numbers at valid tokens and in the padding, for everything after the gate.

One program a gate and dtype computes the value and the gradient of every term, for all
scenarios at once; the tests of the rows look at its parts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from cases import ARRAYS, MASK, cast, literally, mix, tokens

import jaxppo

INF, NAN = np.inf, np.nan
HIT = 0, 1  # a valid token, among others
PAD = ~MASK
GATES = dict(
    token=jaxppo.log_ratio,
    sequence=jaxppo.sequence_log_ratio,
    sequence_token=jaxppo.sequence_token_log_ratio,
    trajectory=jaxppo.trajectory_log_ratio,
    segment=jaxppo.segment_log_ratio,
)
RUNS = [  # gate, dtype, mode
    ("token", "float32", "eager"),
    ("token", "float32", "jit"),
    ("token", "float16", "vmap of grad"),
    ("token", "float64", "grad of vmap"),
    ("token", "bfloat16", "grad of vmap"),
    ("sequence", "float32", "grad of vmap"),
    ("sequence_token", "bfloat16", "grad of vmap"),
    ("trajectory", "float16", "grad of vmap"),
    ("segment", "float64", "grad of vmap"),
]
FEW = ("clean", "+1000 A<0", "-1000 A=0", "pad advantages nan")  # of the eager run
GARBAGE = dict(nan=NAN, inf=INF, minus_inf=-INF, huge=1e30, large=-1e9)
LOG_PROBS = ("log_probs", "old_log_probs", "ref_log_probs")

# (new, old): far apart, or one of them says that it never happens
FAR = {
    "+100": (-1.0, -101.0),
    "-100": (-101.0, -1.0),
    "+1000": (-1.0, -1001.0),
    "-1000": (-1001.0, -1.0),
    "old=-inf": (-1.0, -INF),
    "new=-inf": (-INF, -1.0),
}
SIGNS = {"A>0": 1.0, "A<0": -1.0, "A=0": 0.0}

# All that takes a log-ratio, and the policy terms that take log-probs beside it.
CASES = {
    str(case): case
    for case in ARRAYS
    if case.batch is tokens
    and case.fn is not jaxppo.vtrace  # test_N15_a_hundred_thousand_steps
    and {"log_ratio", "old_log_probs"} & case.inputs().keys()
    and case.fn not in GATES.values()
}
POLICY = {k: c for k, c in CASES.items() if "advantages" in c.inputs()}  # every gate
NAMES = sorted({k for c in CASES.values() for k in c.inputs()} | set(LOG_PROBS))
NAMES = [k for k in NAMES if k not in ("log_ratio", "policy_log_ratio", "divergence")]


def clean():
    """A ragged batch; each array as the tests of the table draw it."""
    batch = tokens(np.random.default_rng(3))
    return {name: batch[name] for name in NAMES}


@functools.cache
def scenarios():
    """By name: the batch, with one thing wrong."""
    start = clean()
    out = {"clean": start}
    for far, (new, old) in FAR.items():
        for sign, advantage in SIGNS.items():
            bad = {k: np.copy(x) for k, x in start.items()}
            bad["log_probs"][HIT], bad["old_log_probs"][HIT] = new, old
            bad["ref_log_probs"][HIT] = old
            bad["advantages"][HIT[0]] = advantage
            out[f"{far} {sign}"] = bad
    for name, x in start.items():
        if name != "mask":
            for garbage, value in GARBAGE.items():
                out[f"pad {name} {garbage}"] = start | {name: np.where(PAD, value, x)}
            out[f"nan {name}"] = start | {name: np.copy(x)}
            out[f"nan {name}"][name][HIT] = NAN
    apart = dict(log_probs=0.0, old_log_probs=-1e3, ref_log_probs=-1e3)
    out["pad apart"] = start | {k: np.where(PAD, x, start[k]) for k, x in apart.items()}
    gone = dict.fromkeys(LOG_PROBS, np.where(PAD, -INF, start["log_probs"]))
    out["pad gone"] = start | gone
    out["pad gone clean"] = start | dict.fromkeys(LOG_PROBS, start["log_probs"])
    out["no token"] = start | dict(mask=np.zeros_like(MASK))
    return out


def term(case, gate, batch):
    """A case on what the gate lets through."""
    log_probs, mask = batch["log_probs"], batch["mask"]
    old, ref = batch["old_log_probs"], batch["ref_log_probs"]
    inputs = {name: batch[name] for name in case.inputs() if name in batch}
    if "log_ratio" in case.inputs():
        inputs["log_ratio"] = gate(log_probs, ref if is_kl(case) else old, mask)
    if "policy_log_ratio" in case.inputs():
        inputs["policy_log_ratio"] = gate(log_probs, old, mask)
    if "divergence" in case.inputs():
        inputs["divergence"] = jaxppo.binary_tv(log_probs, old, mask)
    for name in case.column.split():
        inputs[name] = inputs[name][..., HIT[1] : HIT[1] + 1]
    return case(**inputs)


def counted(case, out, mask):
    """What is differentiated of it: of the tokens that count."""
    out = case.differentiated(out)
    if not case.masked:
        out = jaxppo.masked_sum(out, mask)
    return mix(out)


def is_kl(case):
    return "_kl" in f"_{case.fn.__name__}"


def everything(gate, batch, over=lambda f: f):
    """Every term's value, and each one's gradient by every floating input."""
    mask = batch["mask"]
    floats = {k: x for k, x in batch.items() if k != "mask"}

    def of_one(floats, mask):
        given = floats | {"mask": mask}
        some = CASES if gate is jaxppo.log_ratio else POLICY
        out = {name: term(case, gate, given) for name, case in some.items()}
        smooth = {k: x for k, x in out.items() if not is_choice(x)}
        return {k: counted(CASES[k], x, mask) for k, x in smooth.items()}, out

    def totals(floats):
        sums, out = over(of_one)(floats, mask)
        return jax.tree.map(jnp.sum, sums), out

    # A cotangent of 0 for all terms but one: none of them may make a NaN of it.
    grads, values = jax.jacrev(totals, has_aux=True)(floats)
    return values, grads


def is_choice(out):
    return all(x.dtype == bool for x in jax.tree.leaves(out))


@functools.cache
def outcome(gate, dtype, mode):
    """By scenario: values and gradients of every term, by its name."""
    one = functools.partial(everything, GATES[gate])
    # As it is written, once: see `literally`. (Without that pass XLA's CPU code of some
    # of the others crashes the interpreter, on jaxlib 0.10.2.)
    compiled = literally if (gate, dtype) == ("token", "bfloat16") else jax.jit
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        batches = {k: cast(x, dtype) for k, x in scenarios().items()}
        if mode == "eager":
            batches = {k: jax.tree.map(jnp.asarray, batches[k]) for k in FEW}
        if mode in ("eager", "jit"):
            run = one if mode == "eager" else compiled(one)
            return {k: jax.tree.map(np.asarray, run(x)) for k, x in batches.items()}
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches.values())
        if mode == "vmap of grad":
            run = jax.vmap(one)
        else:
            run = functools.partial(everything, GATES[gate], over=jax.vmap)
        out = jax.tree.map(np.asarray, compiled(run)(stacked))
    return {k: jax.tree.map(lambda x: x[i], out) for i, k in enumerate(batches)}


def gated_by(case):
    """What of the batch a case reads through the gate."""
    inputs = case.inputs()
    read = set()
    if "log_ratio" in inputs:
        read |= {"log_probs", "ref_log_probs" if is_kl(case) else "old_log_probs"}
    if "policy_log_ratio" in inputs:
        read |= {"log_probs", "old_log_probs"}
    return read


PER_TOKEN = [k for k in NAMES if k != "mask"]
# Of a NaN they are 0 or 1, or leave it in: test_nan_at_a_valid_token_is_not_dropped.
INDICATORS = {k for k in CASES if k.startswith(("clip_frac", "bound_frac"))}
INDICATORS |= {k for k in CASES if k.endswith("_mask")}
