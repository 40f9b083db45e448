"""The head on a mesh: one device's numbers, and no more traffic than plain code has."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxppo

ROWS, TIME, D, V = 8, 16, 32, 4096
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
each_kind = pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
# A mesh, and over which of its axes tokens, the words and the columns of W are sharded.
MESHES = {
    "tensor": ({"data": 2, "tensor": 4}, P("data"), P("tensor")),
    "data": ({"data": 8}, P("data"), P()),
    "fsdp": ({"data": 8}, P("data"), P(None, "data")),
    "context": ({"data": 2, "seq": 2, "tensor": 2}, P("data", "seq"), P("tensor")),
    "words": ({"tensor": 8}, P(), P("tensor")),
}
each_mesh = pytest.mark.parametrize("layout", MESHES.values(), ids=list(MESHES))


def inputs(seed=0, time=TIME):
    rng = np.random.default_rng(seed)
    hidden, other = rng.normal(size=(2, ROWS, time, D))
    unembed, ref = rng.normal(size=(2, V, D)) / 2
    mask = rng.random((ROWS, time)) < 0.6
    hidden[~mask] = np.nan
    floats = hidden, other, unembed, ref, rng.normal(size=(ROWS, time))
    hidden, other, unembed, ref, weights = (np.float32(x) for x in floats)
    targets = rng.integers(0, V, (ROWS, time)).astype(np.int32)
    arrays = dict(
        hidden=hidden,
        ref_hidden=other,
        unembed=unembed,
        ref_unembed=ref,
        targets=targets,
        weights=weights,
        mask=mask,
    )
    return jax.tree.map(jnp.asarray, arrays)


def heads(x, **kwargs):
    """Each way to a loss: all of them a number of the whole batch."""
    hidden, unembed, mask = x["hidden"], x["unembed"], x["mask"]
    given = dict(mask=mask, vocab_block=700) | kwargs

    def tokens(mode):
        out = jaxppo.token_log_probs(
            hidden, unembed, x["targets"], mode=mode, token_block=24, **given
        )
        return jnp.sum(x["weights"] * out.log_probs - 0.1 * out.entropy)

    def kl():
        out = jaxppo.head_kl(
            hidden, unembed, x["ref_hidden"], x["ref_unembed"], **given
        )
        return jnp.sum(x["weights"] * out.from_policy) + jnp.sum(out.from_ref)

    def in_forward():
        def terms(head, b):
            each = b["weights"] * head.log_probs - 0.1 * head.entropy
            each = each + 0 * b["of_items"][:, None]  # one number each
            return jaxppo.token_sum(each, b["mask"]), {}

        batch = {k: x[k] for k in ("weights", "mask")}
        batch["of_items"] = jnp.sum(jnp.where(x["mask"], x["weights"], 0), 1)
        more = dict(targets=x["targets"], items=3)
        loss, _ = jaxppo.linear_policy_loss(
            hidden, unembed, batch, terms, **more, **given
        )
        return loss.value

    return dict(
        recompute=partial(tokens, "recompute"),
        cached=partial(tokens, "cached"),
        reference=partial(tokens, "reference"),
        kl=kl,
        in_forward=in_forward,
    )


def value_and_grad(way, **kwargs):
    def loss(arrays, rest):
        return heads(arrays | rest, **kwargs)[way]()

    def split(x):
        arrays = {k: x[k] for k in ("hidden", "unembed")}
        return jax.value_and_grad(loss)(arrays, {k: x[k] for k in x if k not in arrays})

    return split


def placed(x, mesh, tokens, words):
    specs = {k: words if "unembed" in k else tokens for k in x}
    return {k: jax.device_put(a, NamedSharding(mesh, specs[k])) for k, a in x.items()}


def mesh_of(sizes, kind):
    axes = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(*axes, axis_types=(kind,) * len(sizes))


def named(kind, tokens, words):
    """What has to be said where the types do not say it."""
    if kind == EXPLICIT:
        return {}
    return dict(token_spec=tokens, vocab_axis=words[0] if len(words) else None)


def close(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert np.all(np.isfinite(y))
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.max(np.abs(y)))


@pytest.fixture(scope="module")
def alone():
    x = inputs()
    return {way: jax.jit(value_and_grad(way))(x) for way in heads(x)}


@each_kind
@each_mesh
@pytest.mark.parametrize(
    "way", ["recompute", "cached", "reference", "kl", "in_forward"]
)
def test_a_mesh_changes_nothing(way, layout, kind, alone):
    sizes, tokens, words = layout
    if way == "in_forward" and len(tokens) > 1:
        pytest.skip("items are whole: refused, below")
    mesh = mesh_of(sizes, kind)
    with jax.set_mesh(mesh):
        x = placed(inputs(), mesh, tokens, words)
        got = jax.jit(value_and_grad(way, **named(kind, tokens, words)))(x)
    close(got, alone[way])


# --- traffic and memory ---


def traffic(compiled):
    """Bytes that a device's collectives put out, by kind."""
    out = {}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind in re.findall(
        rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text()
    ):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            size = int(re.sub(r"\D", "", dtype)) // 8
            count = np.prod([int(n) for n in shape.split(",") if n], dtype=int)
            out[kind] = out.get(kind, 0) + size * int(count)
    return out


def plain(x):
    """What one would write, and leave to the compiler."""
    logits = jnp.einsum("btd,vd->btv", x["hidden"], x["unembed"])
    log_p = jax.nn.log_softmax(logits, -1)
    own = jax.nn.one_hot(x["targets"], len(x["unembed"]), dtype=bool)
    log_probs = jnp.sum(jnp.where(own, log_p, 0), -1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return jnp.sum(x["weights"] * log_probs - 0.1 * entropy)


def streamed(x, **kwargs):
    out = jaxppo.token_log_probs(
        *(x["hidden"], x["unembed"], x["targets"]),
        **dict(mode="recompute", vocab_block=64),
        **kwargs,
    )
    return jnp.sum(x["weights"] * out.log_probs - 0.1 * out.entropy)


def compiled(loss, mesh, tokens, words, time=TIME):
    def grads(arrays, rest):
        return jax.value_and_grad(lambda arrays: loss(arrays | rest))(arrays)

    with jax.set_mesh(mesh):
        x = placed(inputs(time=time), mesh, tokens, words)
        arrays = {k: x.pop(k) for k in ("hidden", "unembed")}
        rest = {k: x[k] for k in ("targets", "weights")}
        return jax.jit(grads).lower(arrays, rest).compile()


@each_kind
@each_mesh
def test_no_more_traffic_than_plain_code(layout, kind):
    sizes, tokens, words = layout
    theirs = compiled(plain, mesh_of(sizes, AUTO), tokens, words)
    loss = partial(streamed, **named(kind, tokens, words))
    ours = compiled(loss, mesh_of(sizes, kind), tokens, words)
    assert sum(traffic(theirs).values()) > 0
    for name, size in traffic(ours).items():
        assert size <= traffic(theirs).get(name, 0), name


def in_loops(program):
    """Collectives in the bodies of loops: once a block instead of once."""
    loops = set(re.findall(r"body=%?([\w.-]+)", program.as_text()))
    found, name = [], ""
    for line in program.as_text().splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = start[1]
        kind = re.search(r" (all-[a-z]+|reduce-scatter)(?:-start)?\(", line)
        found += [kind[1]] if kind and name in loops else []
    return found


@each_mesh
def test_no_collective_in_a_loop(layout):
    sizes, tokens, words = layout
    loss = partial(streamed, **named(AUTO, tokens, words))
    assert not in_loops(compiled(loss, mesh_of(sizes, AUTO), tokens, words))


def test_an_eighth_of_its_memory():
    sizes, tokens, words = MESHES["tensor"]
    mesh = mesh_of(sizes, AUTO)
    taken = [
        compiled(f, mesh, tokens, words, 8 * TIME).memory_analysis().temp_size_in_bytes
        for f in (partial(streamed, token_spec=tokens, vocab_axis="tensor"), plain)
    ]
    assert taken[0] <= taken[1] / 8


def test_traffic_is_seen():
    """In a loop of blocks, too: what the compiler does when it is told nothing."""
    sizes, tokens, words = MESHES["tensor"]
    untold = compiled(streamed, mesh_of(sizes, AUTO), tokens, words)
    assert traffic(untold).get("all-gather", 0) > 0
    assert in_loops(untold)


def test_targets_follow_the_hidden_states():
    """Replicated targets do not unshard the tokens of an Explicit mesh."""
    mesh = mesh_of({"data": 8}, EXPLICIT)
    x = inputs()
    with jax.set_mesh(mesh):
        put = lambda name, spec: jax.device_put(x[name], NamedSharding(mesh, spec))
        args = put("hidden", P("data")), put("unembed", P()), put("targets", P())
        f = jax.jit(lambda *a: jaxppo.token_log_probs(*a, mask=x["mask"]).log_probs)
        assert jax.typeof(f(*args)).sharding.spec[0] == "data"
        assert "all-gather" not in traffic(f.lower(*args).compile())


def test_gae_inside_shard_map():
    """With a bootstrap value that every device shares."""
    mesh = mesh_of({"data": 8}, AUTO)
    rng = np.random.default_rng(2)
    rewards, values = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)
    mask = jnp.asarray(rng.random((8, 5)) < 0.7)

    def f(rewards, values, mask, last):
        last = jnp.broadcast_to(last, rewards.shape[:-1])
        return jaxppo.gae(
            rewards, values, 0.9, bootstrap_value=last, mask=mask
        ).advantages

    args = rewards, values, mask, jnp.float32(0.3)
    specs = dict(in_specs=(P("data"),) * 3 + (P(),), out_specs=P("data"))
    got = jax.jit(jax.shard_map(f, mesh=mesh, **specs))(*args)
    np.testing.assert_allclose(got, f(*args), rtol=1e-6, atol=1e-6)


# --- inside shard_map ---


def inside(x, mesh, way, tokens, words, check_vma=True, **kwargs):
    def local(arrays, rest):
        loss = lambda arrays: heads(arrays | rest, **kwargs)[way]()
        value, grads = jax.value_and_grad(loss)(arrays)
        over = tuple(name for entry in tokens for name in (entry,) if name)
        return (jax.lax.psum(value, over) if over else value), grads

    x = placed(x, mesh, tokens, words)
    arrays = {k: x[k] for k in ("hidden", "unembed")}
    rest = {k: x[k] for k in x if k not in arrays}
    of = lambda tree: {k: words if "unembed" in k else tokens for k in tree}
    return jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(of(arrays), of(rest)),
            out_specs=(P(), of(arrays)),
            check_vma=check_vma,
        )
    )(arrays, rest)


@each_kind
@pytest.mark.parametrize(
    "way", ["recompute", "cached", "reference", "kl", "in_forward"]
)
def test_inside_shard_map(way, kind, alone):
    sizes, tokens, words = MESHES["tensor"]
    mesh = mesh_of(sizes, kind)
    got = inside(inputs(), mesh, way, tokens, words, vocab_axis="tensor")
    close(got, alone[way])


@pytest.mark.parametrize("way", ["recompute", "kl", "in_forward"])
def test_wrong_set_ups_are_refused(way, unchecked):
    sizes, tokens, words = MESHES["tensor"]
    mesh, x = mesh_of(sizes, AUTO), inputs()
    run = partial(inside, x, mesh, way, tokens)
    with pytest.raises(ValueError, match="`unembed` does not vary over"):
        run(P(), vocab_axis="tensor")  # words are not sharded
    with pytest.raises(ValueError, match="check_vma"):
        run(words, vocab_axis="tensor", check_vma=False)
    with pytest.raises(ValueError, match="each device would take its words for all"):
        inside({k: x[k] for k in x}, mesh, way, P(), words)  # `vocab_axis` forgotten
    with pytest.raises(ValueError, match="inside `shard_map`"):
        run(words, vocab_axis="tensor", token_spec=P("data"))
    with jax.set_mesh(mesh):
        loss = lambda **kwargs: heads(x, **kwargs)[way]()
        with pytest.raises(ValueError, match="no axis 'model' in the mesh"):
            loss(vocab_axis="model")
        with pytest.raises(ValueError, match="both tokens and words"):
            loss(vocab_axis="data", token_spec=P("data"))
        with pytest.raises(ValueError, match="has 3 entries"):
            loss(token_spec=P("data", None, None))
        with pytest.raises(TypeError, match="expected a `jax"):
            loss(token_spec="data")
        odd = {k: a[:-1] if "unembed" in k else a for k, a in x.items()}
        with pytest.raises(ValueError, match="4095 words do not divide over the 4"):
            heads(odd, vocab_axis="tensor", token_spec=P("data"))[way]()
        if way == "in_forward":
            with pytest.raises(ValueError, match="Shard the first axis only"):
                loss(token_spec=P(None, "data"))
    mesh = mesh_of(sizes, EXPLICIT)
    with jax.set_mesh(mesh):
        x = placed(x, mesh, tokens, P())
        with pytest.raises(ValueError, match="words not sharded over"):
            heads(x, vocab_axis="tensor")[way]()


def test_selective_log_softmax_of_logits_in_shards():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 64, 8))

    def f(logits, targets):
        log_probs, entropy = jaxppo.selective_log_softmax(logits, targets)
        return jnp.sum(log_probs * entropy)

    expected = jax.value_and_grad(f)(logits, targets)
    for kind in (AUTO, EXPLICIT):
        mesh = mesh_of({"data": 2, "tensor": 4}, kind)
        with jax.set_mesh(mesh):
            put = lambda x, spec, mesh=mesh: jax.device_put(
                x, NamedSharding(mesh, spec)
            )
            args = put(logits, P("data", "tensor")), put(targets, P("data"))
            close(jax.jit(jax.value_and_grad(f))(*args), expected)
