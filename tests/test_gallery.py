"""The gallery: the script draws what the page shows, and the captions' numbers hold."""

import inspect
import re
from pathlib import Path

import gallery
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import aggregation, critics, divergences, surrogates
from processes import run

import jaxppo

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "gallery.md").read_text("utf-8")
SAMPLES = 100_000


# --- the page ---


def test_the_script_draws_what_the_page_names(environment, tmp_path):
    few = ["--samples", "100", "--old-prob", "0.2"]
    text = run(environment, "gallery", "--out", tmp_path, *few)
    named = re.findall(r"\]\((gallery[\w/]*\.png)\)", PAGE)
    assert sorted(named) == sorted(gallery.PICTURES)
    for name in named:
        assert f"Drawn: {tmp_path / name}" in text
        ink = [np.mean(plt.imread(x)[..., :3] < 0.9) for x in (tmp_path / name,)]
        assert 0.01 < ink[0] < 0.5, name
        assert plt.imread(DOCS / name).shape == plt.imread(tmp_path / name).shape
        assert (DOCS / name).stat().st_size < 150_000, name


def test_the_sheet_shows_every_policy_term():
    drawn = inspect.getsource(surrogates)
    for name, term in vars(jaxppo).items():
        room = getattr(term, "__module__", "").rpartition(".")[2]
        if room in ("_clipping", "_weighting", "_trust_region"):
            assert f"jaxppo.{name}" in drawn, name


# --- policy terms ---


def pull(terms, name, sign, ratio, old_prob=0.3):
    (title,) = [title for title in terms if title.partition("\n")[0] == name]
    pulls = surrogates.curves(terms[title], sign, old_prob).pull
    return pulls[np.argmin(np.abs(surrogates.RATIOS - ratio))]


def test_clips_let_go_where_the_page_says():
    term = lambda *at: pull(surrogates.CLIP, *at)
    assert term("PPO", -1.0, 3.0) == pytest.approx(-3)
    assert term("dual clip", -1.0, 3.0) == 0
    assert term("DAPO, clip-higher", 1.0, 1.25) > 0 == term("PPO", 1.0, 1.25)
    assert term("GSPO", 1.0, 1.62) > 0 == term("GSPO", 1.0, 1.64)
    for low, high in [(0.66, 0.68), (1.48, 1.50)]:
        pulls = [term("GMPO", sign, r) for sign in (-1.0, 1.0) for r in (low, high)]
        assert pulls.count(0) == 1


def test_weights_do_not_let_go():
    for name, term in surrogates.WEIGH.items():
        for sign in surrogates.SIGNS.values():
            pulls = surrogates.curves(term, sign, 0.3).pull
            assert np.all(pulls * sign > 0), name
    (luffy,) = [x for x in surrogates.WEIGH if x.startswith("LUFFY")]
    pulls = surrogates.curves(surrogates.WEIGH[luffy], 1.0, 0.3).pull
    best = surrogates.RATIOS[np.argmax(pulls)]
    assert best == pytest.approx(1 / 3, abs=0.01)


def test_distances_let_go_or_turn_around():
    term = lambda *at: pull(surrogates.BOUND, *at)
    tv = "DPPO, total variation"
    assert term(tv, 1.0, 1.66) > 0 == term(tv, 1.0, 1.675)
    assert term(tv, -1.0, 0.34) < 0 == term(tv, -1.0, 0.325)
    assert pull(surrogates.BOUND, tv, 1.0, 3.0, 0.01) > 0
    far = jaxppo.binary_tv(
        jnp.log(jnp.array([0.209, 0.211])), jnp.log(jnp.full(2, 0.01))
    )
    assert far[0] < 0.2 < far[1]
    assert term("SPO (simple), quadratic", 1.0, 1.1) > 0
    assert term("SPO (simple), quadratic", 1.0, 1.3) < 0
    assert term("KL penalty, k3", -1.0, 0.51) < 0 < term("KL penalty, k3", -1.0, 0.49)


# --- critics ---


def test_value_clips_stop_where_the_page_says():
    at = lambda v: np.argmin(np.abs(critics.VALUES - v))
    clipped, bounded, huber = [
        {r: critics.term_curves(term, r).pull for r in (1.0, 0.25)}
        for name, term in critics.TERMS.items()
        if not name.startswith("squared")
    ]
    squared = critics.term_curves(critics.TERMS["squared_value"], 0.25).pull
    np.testing.assert_array_equal(clipped[0.25], squared)
    assert not np.any(clipped[1.0][at(0.51) : at(1.49)])
    assert np.all(clipped[1.0][[at(0.49), at(1.51)]] != 0) and clipped[1.0][0] > 0
    outside = np.abs(critics.VALUES) > critics.CLIP_EPS + 1e-6
    assert all(not np.any(x[outside]) and np.any(x) for x in bounded.values())
    assert max(np.max(np.abs(x)) for x in huber.values()) == critics.DELTA


def test_distributional_critics_are_pulled_as_the_page_says():
    probs = critics.targets(jnp.asarray(critics.TARGET))
    assert np.sum(probs["two_hot"] > 0) == 2 and np.sum(probs["hl_gauss"] > 0.01) > 2
    pulls = critics.logit_pulls(critics.VALUES)
    for size in pulls.values():
        assert np.max(size) == pytest.approx(1, abs=0.02)
        assert np.min(size) < 0.02
    flat = pulls["two_hot"][critics.VALUES > 1.05]
    np.testing.assert_allclose(flat, 1, rtol=1e-4)
    low, middle, high = critics.quantile_pulls(critics.VALUES)[[0, -1]].T
    assert high[0] == pytest.approx(-5 * high[1]) and low[1] == pytest.approx(-high[0])
    assert middle[0] == -middle[1]


# --- KL estimators ---


@pytest.fixture(scope="module")
def sampled():
    return {
        (name, where): divergences.sample(term, distance, SAMPLES)
        for name, term in divergences.ESTIMATORS.items()
        for where, distance in divergences.DISTANCES.items()
    }


def test_true_divergences_are_those_of_the_page():
    for distance, shown in zip(
        divergences.DISTANCES.values(), ("0.0055", "2.9"), strict=True
    ):
        policies = divergences.policies(distance)
        assert f"{jaxppo.categorical_kl(*policies):.2g}" == shown
        assert f"KL {shown}" in PAGE
    logits, ref = (jax.nn.log_softmax(x) for x in policies)
    assert np.max(np.exp(ref - logits)) == pytest.approx(145, abs=0.5)


@pytest.mark.parametrize("where", divergences.DISTANCES)
def test_values_are_biased_or_not(sampled, where):
    for name in divergences.ESTIMATORS.keys() - {"abs", "k2", "k3, held at 10"}:
        x = sampled[name, where]
        assert abs(x.mean - 1) < 3 * x.mean_error, name
    k2 = sampled["k2", where]
    assert abs(k2.mean - {"close": 0.88, "far": 1.60}[where]) < 3 * k2.mean_error
    assert abs(k2.mean - 1) > 8 * k2.mean_error


@pytest.mark.parametrize("where", divergences.DISTANCES)
def test_gradients_are_biased_or_not(sampled, where):
    biased = {"k1", "k3", "abs", "k3, held at 10"}
    for name in divergences.ESTIMATORS:
        x = sampled[name, where]
        error = x.gradient_bias / x.gradient_error
        assert error > 8 if name in biased else error < 3, name
    assert abs(sampled["k1", where].gradient_bias - 1) < 0.1  # all of it


def test_spreads_are_those_of_the_page(sampled):
    spread = lambda where: sampled["k3", where].std / sampled["k1", where].std
    assert spread("close") == pytest.approx(1 / 3, abs=0.03)
    assert spread("far") == pytest.approx(11, abs=0.5)
    assert sampled["k3", "close"].gradient_bias == pytest.approx(0.1, abs=0.02)
    assert sampled["k3", "far"].gradient_bias == pytest.approx(2.5, abs=0.2)
    assert sampled["k3, held at 10", "far"].mean == pytest.approx(0.71, abs=0.01)
    for where in divergences.DISTANCES:
        k2, k1, k3 = (sampled[x, where] for x in ("k2", "k1, weighted", "k3, weighted"))
        assert k3[3:] == pytest.approx(k2[3:], rel=1e-3)
        assert k3.gradient_std < k1.gradient_std


def test_the_picture_of_the_log_ratio_is_as_the_page_says():
    slopes = jax.vmap(jax.grad(jaxppo.kl_k3))(jnp.array([-3.0, 3.0]))
    assert -slopes[0] > 10 and -1 < -slopes[1] < 0
    held = jax.vmap(jax.grad(jaxppo.bounded_kl))(jnp.array([-2.60, -2.62]))
    assert held[0] < 0 == held[1]


# --- aggregation ---


def test_weights_of_tokens():
    weight = {k: aggregation.weights(x) for k, x in aggregation.AGGREGATORS.items()}
    tokens, answers, prompts, scaled, rows, sums = weight.values()
    for x in weight.values():
        assert not np.any(x[~aggregation.MASK]) and np.all(x[aggregation.MASK] > 0)
    for x in (tokens, answers, prompts):
        assert np.sum(x) == pytest.approx(1)
    counted = aggregation.MASK.sum(-1) > 0
    for x in (tokens, scaled, sums):
        assert np.ptp(x[aggregation.MASK]) == 0
    assert tokens[1].sum() == pytest.approx(8 / 19)
    np.testing.assert_allclose(answers.sum(-1)[counted], 1 / 5, rtol=1e-6)
    assert answers[3, 0] == pytest.approx(8 * answers[1, 0])
    np.testing.assert_allclose(prompts.reshape(2, -1).sum(-1), 1 / 2, rtol=1e-6)
    np.testing.assert_allclose(rows, answers * 5 / 6, rtol=1e-6)
    assert scaled[0, 0] == pytest.approx(1 / 8 / 5) and sums[0, 0] == 1
