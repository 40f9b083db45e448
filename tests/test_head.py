"""The head of a language model: the same numbers in every mode, from fewer bytes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_errors import message

import jaxppo
from jaxppo import _advantages, _recurrence, _stream

MODES = {
    "recompute": dict(mode="recompute"),
    "blocks": dict(mode="recompute", vocab_block=10, token_block=5),
    "ragged": dict(mode="recompute", vocab_block=17, token_block=64),
    "cached": dict(mode="cached", vocab_block=10, token_block=5),
    "auto": dict(),
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
N, D, V = 37, 6, 103


def head_of(seed, dtype=np.float64, n=N, d=D, v=V, scale=1.0):
    """Hidden states, an unembedding, targets and a mask that leaves a third."""
    rng = np.random.default_rng(seed)
    hidden, unembed = rng.normal(size=(n, d)), scale * rng.normal(size=(v, d))
    arrays = [jnp.asarray(x, dtype) for x in (hidden, unembed)]
    mask = rng.random(n) < 1 / 3
    return *arrays, jnp.asarray(rng.integers(0, v, n)), jnp.asarray(mask)


def weighed(head, weights):
    """A number in which every output has its share."""
    return sum(
        jnp.vdot(w, x.astype(w.dtype)) for w, x in zip(weights, head, strict=True)
    )


def weights_of(seed, n=N, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(3, n)), dtype)


def loss(hidden, unembed, bias, targets, mask, **kwargs):
    kwargs = dict(temperature=0.7, softcap=9.0, bias=bias, mask=mask) | kwargs
    out = jaxppo.token_log_probs(hidden, unembed, targets, **kwargs)
    return weighed(out, weights_of(1)), out


@each_mode
@pytest.mark.parametrize("masked", [False, True])
def test_every_mode_is_the_reference(mode, masked, x64):
    hidden, unembed, targets, mask = head_of(0)
    targets = targets.at[jnp.array([3, 20])].set(jnp.array([-100, V]))
    mask = mask if masked else None
    if masked:
        hidden = jnp.where(mask[:, None], hidden, jnp.nan)
    bias = weights_of(2, V)[0]
    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    run = lambda **kw: jax.jit(partial(both, **kw))(
        hidden, unembed, bias, targets, mask
    )
    got, expected = run(**mode), run(mode="reference")
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.all(np.isfinite(y))
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_central_differences(mode, masked, x64):
    """Elementwise, to a millionth."""
    hidden, unembed, targets, mask = head_of(3, n=5, d=3, v=7)
    bias, weights = weights_of(4, 7)[0], weights_of(5, 5)
    blocks = dict(mode=mode, vocab_block=3, token_block=2, softcap=4.0, temperature=0.7)
    mask = mask.at[:2].set(jnp.array([True, False])) if masked else None

    @jax.jit
    def f(arrays):
        hidden, unembed, bias = arrays
        head = jaxppo.token_log_probs(
            hidden, unembed, targets, bias=bias, mask=mask, **blocks
        )
        return weighed(head, weights)

    arrays = [hidden, unembed, bias]
    for k, grad in enumerate(jax.grad(f)(arrays)):
        for at in np.ndindex(grad.shape):
            moved = [
                f([x.at[at].add(h) if i == k else x for i, x in enumerate(arrays)])
                for h in (1e-5, -1e-5)
            ]
            slope = (moved[0] - moved[1]) / 2e-5
            np.testing.assert_allclose(grad[at], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
def test_vmap_of_grad_is_exact(mode, x64):
    hidden, unembed, targets, mask = head_of(6, n=12)
    split = lambda x: x.reshape(3, 4, *x.shape[1:])
    weights = weights_of(7, 4)

    def f(hidden, unembed, targets, mask):
        head = jaxppo.token_log_probs(
            hidden,
            unembed,
            targets,
            mask=mask,
            mode=mode,
            vocab_block=30,
            token_block=2,
        )
        return weighed(head, weights)

    grad = jax.grad(f, (0, 1))
    rows = tuple(split(x) for x in (hidden, targets, mask))
    mapped = jax.vmap(lambda h, y, m: grad(h, unembed, y, m))(*rows)
    for i in range(3):
        h, y, m = (x[i] for x in rows)
        for x, one in zip(mapped, grad(h, unembed, y, m), strict=True):
            np.testing.assert_allclose(x[i], one, rtol=1e-14, atol=1e-15)


def test_second_derivatives_by_the_reference(x64):
    hidden, unembed, targets, _ = head_of(8, n=3, v=11)

    def f(x, mode):
        out = jaxppo.token_log_probs(x * hidden, unembed, targets, mode=mode)
        return jnp.sum(out.log_probs * out.entropy)

    slope = lambda x: jax.grad(f)(x, "recompute")
    second = jax.hessian(f)(1.0, "reference")
    np.testing.assert_allclose(
        second, (slope(1 + 1e-5) - slope(1 - 1e-5)) / 2e-5, rtol=1e-6
    )
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: f(x, "recompute"), (1.0,), (1.0,))


# --- numerics ---


@each_mode
def test_log_probs_of_bfloat16_to_a_hundred_thousandth(mode):
    """Of a nat: against float64 of the same inputs."""
    hidden, unembed, targets, _ = head_of(
        9, jnp.bfloat16, n=64, d=512, v=4099, scale=0.2
    )
    got = jax.jit(partial(jaxppo.token_log_probs, **mode))(hidden, unembed, targets)
    z = np.float64(hidden) @ np.float64(unembed).T
    top = z.max(1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(z - top).sum(1))
    log_p = z - lse[:, None]
    exact = log_p[np.arange(64), targets], -(np.exp(log_p) * log_p).sum(1), lse
    assert np.ptp(exact[0]) > 10  # not all alike
    for x, y in zip(got, exact, strict=True):
        np.testing.assert_allclose(np.float64(x), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
def test_gradients_of_float16_are_made_in_float32(mode):
    """Weights of 1e5 give logits gradients that float16 does not hold."""
    hidden, unembed, targets, _ = head_of(12, jnp.float16, n=8, d=5, v=11, scale=0.3)

    def f(hidden, unembed):
        out = jaxppo.token_log_probs(hidden, unembed, targets, mode=mode)
        return 1e5 * jnp.sum(out.log_probs)

    wide = [x.astype(jnp.float32) for x in (hidden, unembed)]
    expected = jax.grad(f, (0, 1))(*wide)
    for x, y in zip(jax.grad(f, (0, 1))(hidden, unembed), expected, strict=True):
        assert x.dtype == jnp.float16 and np.max(np.abs(y)) > 65504 > 1e3
        held = np.clip(y, -65504, 65504)  # what is larger is inf, as it should be
        small = np.abs(y) < 6e4
        assert np.all(np.isinf(x[np.abs(y) > 65600])) and small.any()
        np.testing.assert_allclose(x[small], held[small], rtol=2e-3, atol=1)


@each_mode
def test_without_jit(mode):
    """As one looks for a fault: loops are Python's then, their counters, too."""
    hidden, unembed, targets, mask = head_of(13, np.float32)
    f = partial(jaxppo.token_log_probs, hidden, unembed, targets, mask=mask, **mode)
    expected = jax.jit(f)()
    with jax.disable_jit():
        got = f()
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@each_mode
def test_one_token_alone(mode):
    hidden, unembed, targets, _ = head_of(14, np.float32)
    alone = jaxppo.token_log_probs(hidden[0], unembed, targets[0], **mode)
    batch = jaxppo.token_log_probs(hidden[:1], unembed, targets[:1], **mode)
    for x, y in zip(alone, batch, strict=True):
        assert x.shape == ()
        np.testing.assert_allclose(x, y[0], rtol=1e-6)


@each_mode
def test_no_tokens(mode):
    hidden, unembed = jnp.zeros((2, 0, 3)), jnp.ones((4, 3))
    targets = jnp.zeros((2, 0), jnp.int32)
    for out in jaxppo.token_log_probs(hidden, unembed, targets, **mode):
        assert out.shape == (2, 0) and out.dtype == hidden.dtype


def rms(x):
    return np.sqrt(np.mean(np.float64(x) ** 2))


@pytest.mark.parametrize(
    "blocks", [(4099, 512), (512, 512), (128, 16), (100, 7)], ids=str
)
@pytest.mark.parametrize("mode", ["recompute", "cached", "in_forward"])
def test_weight_gradients_are_rounded_once(mode, blocks):
    """In bfloat16, an error of 1.5 roundings at most, however small the blocks."""
    n = 512
    hidden, unembed, targets, _ = head_of(
        10, jnp.bfloat16, n=n, d=32, v=4099, scale=0.3
    )
    weights = weights_of(11, n, np.float32)[:2]

    def f(unembed, hidden, **kwargs):
        out = jaxppo.token_log_probs(hidden, unembed, targets, **kwargs)
        each = weights[0].astype(out.log_probs.dtype) * out.log_probs
        return jnp.sum(each - 0.1 * out.entropy)

    def in_forward(unembed, hidden, vocab_block, token_block):
        def terms(head, w):
            each = w * head.log_probs - 0.1 * head.entropy
            return jaxppo.token_sum(each), {}

        loss, _ = jaxppo.linear_policy_loss(
            *(hidden, unembed, weights[0], terms),
            **dict(targets=targets, vocab_block=vocab_block, items=token_block),
        )
        return loss.value

    vocab_block, token_block = blocks
    sizes = dict(vocab_block=vocab_block, token_block=token_block)
    fn = in_forward if mode == "in_forward" else partial(f, mode=mode)
    got = jax.jit(jax.grad(partial(fn, **sizes)))(unembed, hidden)
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) for x in (unembed, hidden)]
        exact = jax.grad(partial(f, mode="reference"))(*wide)
        once = rms(np.float64(exact.astype(jnp.bfloat16)) - np.float64(exact))
        assert rms(np.float64(got) - np.float64(exact)) <= 1.5 * once


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64"])
def test_targets_of_any_integer(dtype, x64):
    """Narrow ones end before the vocabulary does."""
    hidden, unembed, _, _ = head_of(12, n=4, v=300)
    targets = np.array([0, 5, 127, np.iinfo(dtype).max], dtype)
    out = jaxppo.token_log_probs(hidden, unembed, jnp.asarray(targets))
    table = jax.nn.log_softmax(hidden @ unembed.T)
    for i, target in enumerate(targets):
        expected = table[i, int(target)] if target < 300 else 0.0
        np.testing.assert_allclose(out.log_probs[i], expected, rtol=1e-12)


def test_a_forbidden_word(x64):
    """A bias of -inf: log-prob -inf, and nothing else notices."""
    hidden, unembed, targets, _ = head_of(13, n=4, v=11)
    targets, bias = targets.at[0].set(7), jnp.zeros(11).at[7].set(-jnp.inf)
    run = partial(jaxppo.token_log_probs, hidden, vocab_block=3)
    out = run(unembed, targets, bias=bias)
    kept = np.delete(np.arange(11), 7)
    fewer = run(unembed[kept], jnp.where(targets > 7, targets - 1, targets))
    assert out.log_probs[0] == -jnp.inf
    np.testing.assert_allclose(out.log_probs[1:], fewer.log_probs[1:], rtol=1e-12)
    np.testing.assert_allclose(out.entropy, fewer.entropy, rtol=1e-12)


def test_a_bias_forbids_under_a_softcap(x64):
    """A capped -inf would be -softcap: a word like any other."""
    hidden, unembed, targets, _ = head_of(30, n=4, v=11)
    targets, bias = targets.at[0].set(7), jnp.zeros(11).at[7].set(-jnp.inf)

    def f(arrays, mode):
        out = jaxppo.token_log_probs(
            *(*arrays, targets),
            **dict(bias=bias, softcap=3.0, vocab_block=3, mode=mode),
        )
        return jnp.sum(out.log_probs[1:]) + jnp.sum(out.entropy), out.log_probs[0]

    run = jax.value_and_grad(f, has_aux=True)
    expected = run([hidden, unembed], "reference")
    for mode in ("recompute", "cached"):
        (value, own), grads = run([hidden, unembed], mode)
        assert own == -jnp.inf
        np.testing.assert_allclose(value, expected[0][0], rtol=1e-12)
        for x, y in zip(grads, expected[1], strict=True):
            assert np.all(np.isfinite(x))
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


# --- less work, fewer bytes ---


def visits(monkeypatch, mask, **kwargs):
    """How many blocks of logits are made in a forward pass."""
    seen, logits = [], _stream.Head.logits

    def counted(self):
        jax.debug.callback(lambda: seen.append(1))
        return logits(self)

    hidden, unembed, targets, _ = head_of(14, np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(_stream.Head, "logits", counted)
        out = jaxppo.token_log_probs(hidden, unembed, targets, mask=mask, **kwargs)
        jax.block_until_ready(out)
        jax.effects_barrier()
    return len(seen)


def test_masked_tokens_are_left_out(monkeypatch):
    blocks = dict(mode="recompute", vocab_block=52, token_block=4)  # 2 x 10 of them
    mask = np.arange(N) % 4 == 0  # 10 tokens: 3 blocks
    assert visits(monkeypatch, jnp.asarray(mask), **blocks) == 2 * 3
    assert visits(monkeypatch, None, **blocks) == 2 * 10
    assert visits(monkeypatch, jnp.zeros(N, bool), **blocks) == 0


def temporaries(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("vocab_last", [False, True])
def test_neither_logits_nor_a_copy_of_the_unembedding(vocab_last):
    hidden, unembed, targets, _ = head_of(15, np.float32, n=512, d=64, v=8192)
    unembed = unembed.T if vocab_last else unembed

    def f(hidden, unembed, **kwargs):
        out = jaxppo.token_log_probs(
            hidden, unembed, targets, vocab_last=vocab_last, **kwargs
        )
        return jnp.sum(out.log_probs + out.entropy)

    grad = lambda **kwargs: jax.grad(partial(f, **kwargs), (0, 1))
    streamed = grad(mode="recompute", vocab_block=256, token_block=512)
    taken = temporaries(streamed, hidden, unembed)
    assert taken < unembed.nbytes * 0.75
    assert taken < temporaries(grad(mode="reference"), hidden, unembed) / 20


def test_in_the_forward_pass_each_logit_is_made_once():
    """3 products instead of 4, of one block: a loop's body is counted once."""
    hidden, unembed, targets, _ = head_of(16, np.float32, n=128, d=64, v=512)
    one = dict(vocab_block=128, token_block=128)

    def flops(f):
        cost = jax.jit(jax.grad(f, (0, 1))).lower(hidden, unembed).compile()
        return cost.cost_analysis()["flops"]

    def streamed(hidden, unembed):
        out = jaxppo.token_log_probs(hidden, unembed, targets, mode="recompute", **one)
        return jaxppo.token_mean(out.log_probs).value

    def fused(hidden, unembed):
        terms = lambda head, _: (jaxppo.token_mean(head.log_probs), {})
        return jaxppo.linear_policy_loss(
            hidden, unembed, hidden, terms, targets=targets, **one
        )[0].value

    product = 2 * 128 * 64 * 128
    assert 3 <= flops(fused) / product < 3.6
    assert 4 <= flops(streamed) / product < 4.6


# --- the plan ---


@pytest.mark.parametrize(
    ("size", "given", "mode"),
    [
        ((1024, 32000, 1024), dict(platform="cpu"), "cached"),
        ((1024, 32000, 256), dict(platform="cpu"), "recompute"),  # as fast, and less
        ((1024, 32000, 1024), dict(platform="cpu", cache_bytes=2**20), "recompute"),
        ((1024, 32000, 256), dict(platform="gpu"), "cached"),
        ((8192, 151936, 4096), dict(platform="gpu"), "recompute"),
        ((8, 32000, 256), dict(platform="tpu", mode="recompute"), "recompute"),
        ((8192, 151936, 4096), dict(mode="reference"), "reference"),
    ],
)
def test_what_auto_chooses_can_be_read(size, given, mode):
    plan = jaxppo.head_plan(*size, **given)
    assert plan.mode == mode
    assert 1 <= plan.token_block <= size[0]
    assert 1 <= plan.vocab_block <= size[1]


def test_blocks_are_the_ones_asked_for():
    plan = jaxppo.head_plan(100, 1000, 16, vocab_block=7, token_block=2000)
    assert plan[1:] == (7, 100)
    masked = jaxppo.head_plan(8192, 1000, 16, masked=True, platform="gpu")
    assert (
        masked.token_block
        < jaxppo.head_plan(8192, 1000, 16, platform="gpu").token_block
    )


# --- one loss, its gradient made in the forward pass ---


def sequences(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    hidden, unembed, targets, _ = head_of(seed, dtype, n=7 * 5)
    mask = jnp.asarray(rng.random((7, 5)) < 0.7).at[0].set(False)
    hidden = jnp.where(mask[..., None], hidden.reshape(7, 5, D), jnp.nan)
    old = -4 + 0.5 * rng.normal(size=(7, 5))
    batch = dict(
        old=jnp.asarray(old, dtype), adv=jnp.asarray(rng.normal(size=(7, 1)), dtype)
    )
    return hidden, unembed, targets.reshape(7, 5), mask, batch | {"mask": mask}


def gspo(head, batch, clip_eps=0.2):
    x = jaxppo.sequence_log_ratio(head.log_probs, batch["old"], batch["mask"])
    terms = jaxppo.clipped_surrogate(x, batch["adv"], clip_eps=clip_eps)
    loss = jaxppo.sequence_mean(terms - 0.01 * head.entropy, batch["mask"])
    highest = jaxppo.ratio_max(x, batch["mask"])
    lowest = jaxppo.ratio_min(x, batch["mask"])
    mean = jaxppo.token_mean(x, batch["mask"])
    return loss, {"highest": highest, "lowest": lowest, "mean": mean}


@pytest.mark.parametrize("items", [None, 1, 3, 7, 100])
def test_a_loss_in_the_forward_pass_is_the_loss(items, x64):
    hidden, unembed, targets, mask, batch = sequences(20)
    bias = weights_of(21, V)[0]
    options = dict(mask=mask, temperature=0.7, softcap=9.0)
    blocks = dict(vocab_block=30, token_block=4)

    def plain(arrays):
        hidden, unembed, bias = arrays
        head = jaxppo.token_log_probs(
            hidden, unembed, targets, bias=bias, mode="reference", **options
        )
        loss, metrics = gspo(head, batch)
        return loss.value, (loss, metrics)

    def fused(arrays):
        hidden, unembed, bias = arrays
        options_ = options | blocks | dict(items=items, bias=bias, targets=targets)
        loss, metrics = jaxppo.linear_policy_loss(
            hidden, unembed, batch, gspo, **options_
        )
        return loss.value, (loss, metrics)

    for transform in (lambda f: f, jax.value_and_grad):
        run = lambda f, transform=transform: jax.jit(
            transform(f, has_aux=True) if transform is jax.value_and_grad else f
        )([hidden, unembed, bias])
        got, expected = run(fused), run(plain)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    assert rms(jax.grad(lambda x: plain(x)[0])([hidden, unembed, bias])[1]) > 1e-6


def test_it_goes_into_the_learner(x64):
    """As one of its microbatches' losses, with a coefficient that is traced."""
    hidden, unembed, targets, _, batch = sequences(22)
    whole = batch | dict(hidden=hidden, targets=targets)

    def fused(params, b, clip_eps):
        return jaxppo.linear_policy_loss(
            *(b["hidden"], params, {k: b[k] for k in batch}),
            lambda head, b: gspo(head, b, clip_eps),
            **dict(targets=b["targets"], mask=b["mask"], items=2),
        )

    def plain(params, b, clip_eps):
        head = jaxppo.token_log_probs(
            b["hidden"], params, b["targets"], mask=b["mask"], mode="reference"
        )
        return gspo(head, b, clip_eps)

    @partial(jax.jit, static_argnums=0)
    def grads(f, clip_eps):
        fn = lambda params, b: f(params, b, clip_eps)
        return jaxppo.accumulate_grads(fn, unembed, whole, num_microbatches=7)

    for clip_eps in (0.05, 0.4):
        for x, y in zip(
            jax.tree.leaves(grads(fused, clip_eps)),
            jax.tree.leaves(grads(plain, clip_eps)),
            strict=True,
        ):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


# --- the divergence of two heads ---


def test_kl_of_a_word_only_one_allows(x64):
    """Infinite from where it is allowed, and 0 of it from where it is not."""
    rng = np.random.default_rng(23)
    h, w, r = (jnp.asarray(rng.normal(size=s)) for s in ((2, 3), (5, 3), (5, 3)))
    bias = jnp.zeros(5).at[1].set(-jnp.inf)
    kl = lambda h, **kw: jaxppo.head_kl(h, w, h, r, vocab_block=2, **kw)
    only_ref = kl(h, bias=bias, ref_bias=jnp.zeros(5))
    assert np.all(np.isfinite(only_ref.from_policy))
    assert np.all(np.isinf(only_ref.from_ref))
    assert np.all(np.isinf(kl(h, bias=jnp.zeros(5), ref_bias=bias).from_policy))
    finite = dict(from_policy=dict(bias=bias), from_ref=dict(ref_bias=bias))
    for way, given in finite.items():
        grad = jax.grad(lambda h: jnp.sum(getattr(kl(h, **given), way)))(h)
        assert np.all(np.isfinite(grad)), way


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("forbidden", [0.0, -1e9])
def test_kl_gradients_are_the_logits_way(way, forbidden, x64):
    """Also close to the reference, where the divergence is a rounding error's size."""
    hidden, unembed, _, _ = head_of(31, n=5, v=11)
    ref_hidden, ref_bias = hidden + 1e-9, jnp.zeros(11).at[3].set(forbidden)

    def streamed(hidden, unembed):
        return jaxppo.head_kl(
            *(hidden, unembed, ref_hidden, unembed),
            **dict(ref_bias=ref_bias, vocab_block=4, token_block=2),
        )[way].sum()

    def plain(hidden, unembed):
        log_p = jax.nn.log_softmax(hidden @ unembed.T)
        log_q = jax.nn.log_softmax(ref_logits)
        if way:
            log_p, log_q = log_q, log_p
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    ref_logits = ref_hidden @ unembed.T + ref_bias[None]
    got, expected = (jax.grad(f, (0, 1))(hidden, unembed) for f in (streamed, plain))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-14 * (1 - forbidden))


def test_kl_to_itself_is_zero():
    hidden, unembed, _, _ = head_of(24, np.float32)
    kl = jaxppo.head_kl(hidden, unembed, hidden, unembed, vocab_block=10)
    assert np.all(np.array(kl) >= 0)
    np.testing.assert_allclose(np.array(kl), 0, atol=2e-6)


def test_top_entropy_without_logits():
    hidden, unembed, targets, mask = head_of(25, np.float32)
    out = jaxppo.token_log_probs(hidden, unembed, targets, mask=mask, vocab_block=10)
    _, entropy = jaxppo.categorical(hidden @ unembed.T, targets)
    np.testing.assert_array_equal(
        jaxppo.top_entropy_mask(out.entropy, mask, fraction=0.3),
        jaxppo.top_entropy_mask(entropy, mask, fraction=0.3),
    )


# --- for those who have logits ---


def test_selective_is_categorical(x64):
    rng = np.random.default_rng(26)
    logits = jnp.asarray(rng.normal(size=(4, 9))).at[:, 2].set(-jnp.inf)
    actions = jnp.asarray([0, 1, 3, 8])

    def total(logits, fn):
        log_probs, entropy = fn(logits, actions)
        return jnp.sum(log_probs * jnp.arange(4.0)) + jnp.sum(entropy)

    for f in (total, jax.grad(total)):
        ours, theirs = (
            f(logits, jaxppo.selective_log_softmax),
            f(logits, jaxppo.categorical),
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_selective_saves_the_logits_and_two_numbers_a_row():
    logits = jnp.zeros((256, 4096), jnp.bfloat16)
    targets = jnp.zeros(256, jnp.int32)
    f = lambda logits: jaxppo.selective_log_softmax(logits, targets)
    _, pull = jax.vjp(f, logits)
    saved = sum(x.nbytes for x in jax.tree.leaves(pull))
    assert saved < 1.01 * logits.nbytes
    (grad,) = pull(f(logits))
    assert grad.dtype == jnp.bfloat16


# --- GAE by rounds ---


@pytest.mark.parametrize("time", [1, 2, 7, 300])
def test_rounds_are_one_step_after_another(time):
    rng = np.random.default_rng(time)
    x, decay, value = (
        jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 4, time))
    )
    decay = jnp.where(rng.random((4, time)) < 0.2, 0, jnp.clip(abs(decay), 0, 1))
    last, keep = x[:, 0] + 1, jnp.asarray(rng.random((4, time)) < 0.6)
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    each = _recurrence.one_by_one, _recurrence.in_rounds
    close(*(f(x, decay, last) for f in each))
    each = _advantages._gae_in_one_scan, _advantages._gae_over_holes
    close(*(f(last, x, value, decay, decay, keep) for f in each))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_go_in_rounds(platform):
    """A step each would be a loop; the rounds have none."""
    x = jnp.ones((2, 8))
    gae = lambda x: jaxppo.gae(x, x, 0.9, lambda_=0.8, mask=x > 0).advantages
    for f in (gae, lambda x: _recurrence.recurrence(x, x, x[:, 0])):
        loops = lambda p, f=f: (
            jax.export.export(jax.jit(f), platforms=[p])(x)
            .mlir_module()
            .count("stablehlo.while")
        )
        assert loops(platform) == 0 < loops("cpu")


def test_rounds_forget_what_a_terminal_step_led_to():
    x, decay = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([0.5, 0.0, 1.0])
    y = _recurrence.in_rounds(x, decay, jnp.array(jnp.nan))
    np.testing.assert_array_equal(y, [2.0, 2.0, jnp.nan])


# --- errors ---


def test_errors_name_the_argument_and_the_fix(unchecked):
    hidden, unembed, targets, _ = head_of(27, np.float32)
    call = lambda *args, **kwargs: message(
        kwargs.pop("error", ValueError),
        partial(jaxppo.token_log_probs, *args),
        **kwargs,
    )
    assert call(hidden, unembed.T, targets) == (
        "token_log_probs: `unembed` has shape (6, 103), but `hidden` has shape "
        "(37, 6); expected (vocab, d): pass `vocab_last=True`."
    )
    said = call(hidden, unembed, targets, vocab_last=True)
    assert "pass `vocab_last=False`" in said
    said = call(hidden, unembed, targets.astype(np.float32), error=TypeError)
    assert said.startswith("token_log_probs: `targets` has dtype float32; expected int")
    assert "`targets` has shape (36,)" in call(hidden, unembed, targets[1:])
    assert "`bias` has shape (5,); pass shape (103,)" in call(
        hidden, unembed, targets, bias=jnp.zeros(5)
    )
    for block in ("vocab_block", "token_block", "cache_bytes"):
        said = call(hidden, unembed, targets, **{block: 0})
        assert said == f"token_log_probs: `{block}` = 0; expected at least 1."
    said = call(hidden, unembed, targets, mode="fast")
    assert said.startswith("token_log_probs: `mode` = 'fast'; expected one of ('auto',")
    said = call(hidden, unembed, targets, vocab_axis="tensor")
    assert "under `jax.set_mesh(mesh)`" in said
    assert "expected (*batch, d)" in call(hidden, unembed[:0], targets)


def test_errors_of_a_loss_in_the_forward_pass(unchecked):
    hidden, unembed, targets, _, batch = sequences(28, np.float32)
    call = lambda loss_fn, error=ValueError, **kwargs: message(
        error,
        partial(jaxppo.linear_policy_loss, hidden, unembed),
        **dict(targets=targets, batch=batch, loss_fn=loss_fn) | kwargs,
    )
    two = lambda head, b: ({"a": gspo(head, b)[0], "b": gspo(head, b)[0]}, {})
    assert "add them up to one `jaxppo.Mean`" in call(two, TypeError)
    assert "expected (loss, metrics)" in call(lambda head, b: head.log_probs, TypeError)
    assert "`loss_fn` is None" in call(None, TypeError)
    none = message(
        ValueError,
        partial(jaxppo.linear_policy_loss, hidden[:, :0], unembed),
        **dict(targets=targets[:, :0], batch=batch, loss_fn=gspo),
    )
    assert ", 0); expected (items, *) with at least one token" in none
    assert "`items` = 0" in call(gspo, items=0)
    short = {k: x[1:] for k, x in batch.items()}
    said = call(gspo, batch=short)
    assert "`batch` has 6 rows, but `hidden` has shape (7, 5, 6)" in said


def test_errors_of_a_plan():
    said = message(ValueError, partial(jaxppo.head_plan, 8, 0, 4))
    assert said.startswith("head_plan: `vocab_size` = 0")
    said = message(ValueError, partial(jaxppo.head_plan, 8, 8, 4), platform="Cpu")
    assert said.startswith("head_plan: `platform` = 'Cpu'")


def test_errors_of_two_heads(unchecked):
    hidden, unembed, _, _ = head_of(29, np.float32)
    call = lambda *args, **kwargs: message(
        ValueError, partial(jaxppo.head_kl, *args), **kwargs
    )
    assert "cut off padding" in call(hidden, unembed, hidden, unembed[1:])
    assert "both need the same tokens" in call(hidden, unembed, hidden[1:], unembed)
    said = call(hidden, unembed, hidden, unembed.T)
    assert said.startswith(
        "head_kl: `ref_unembed` has shape (6, 103), but `ref_hidden`"
    )
