"""The interactive page: its numbers are the library's, in node and in a browser."""

import functools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import BROWSER, DRIVER, Keys, Page, chromium, contrast, until

import jaxppo

DOCS = Path(__file__).parents[1] / "docs"
STATIC = DOCS / "_static"
SITE = DOCS / "_build/html"
NODE = shutil.which("node")
WRAPPER = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>One token</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; } body { font: 16px sans-serif; margin: 1rem; }
@media (prefers-color-scheme: dark) { body { background: #131416; } }
body[data-theme=light] { background: white; }
body[data-theme=dark] { background: #131416; }
</style>
<body>%s</body></html>
"""


# --- what evaluates JavaScript ---


def missing(what: str) -> None:
    """Skips; fails where JAXPPO_BROWSER is set, as on GitHub: there it is."""
    if os.environ.get("JAXPPO_BROWSER"):
        pytest.fail(f"{what} (JAXPPO_BROWSER is set: nothing is skipped)")
    pytest.skip(what)


def in_node(expression: str, argument=None):
    """The value of an expression of `oneToken` and `argument`."""
    script = f"""
    require({json.dumps(str(STATIC / "surrogates.js"))});
    const argument = JSON.parse(require("fs").readFileSync(0, "utf8"));
    console.log(JSON.stringify({expression}));
    """
    command = [NODE, "--use_strict", "-e", script]
    given = dict(input=json.dumps(argument), capture_output=True, text=True)
    return json.loads(subprocess.run(command, **given, check=True).stdout)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if not BROWSER or not DRIVER:
        missing("no Chromium with its driver here: apt install chromium-driver")
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """The widget on a page of its own, for where the site has not been built."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(STATIC, folder / "_static")
    page = folder / "interactive.html"
    page.write_text(WRAPPER % (DOCS / "interactive.html").read_text("utf-8"), "utf-8")
    return page.as_uri()


@pytest.fixture(params=["alone", "in the site"])
def page(request, driver, wrapper):
    """The page as it opens on a desktop; its console must stay empty."""
    address = wrapper
    if request.param == "in the site":
        built = [SITE / "_static" / file.name for file in STATIC.glob("*.*")]
        same = [
            x.exists() and x.read_bytes() == (STATIC / x.name).read_bytes()
            for x in built
        ]
        if not all(same) or not (SITE / "interactive.html").exists():
            missing("the site is not built, or not from these files")
        address = (SITE / "interactive.html").as_uri()
    page = Page(driver, address)
    page.look("light", 1280)
    yield page
    assert page.complaints() == []


@pytest.fixture(params=["node", "chromium"])
def engine(request):
    """Evaluates an expression of `oneToken` and `argument`."""
    if request.param == "node":
        if not NODE:
            missing("no node here")
        return in_node
    page = Page(request.getfixturevalue("driver"), request.getfixturevalue("wrapper"))
    page.open()
    # By way of JSON, as in node: the driver's own way of numbers loses their last bits.
    script = "const argument = JSON.parse(arguments[0]); return JSON.stringify({})"
    return lambda expression, argument=None: json.loads(
        page.script(script.format(expression), json.dumps(argument))
    )


def numbers(page: Page) -> tuple[float, float, str]:
    """Loss, pull and branch, as the page shows them."""
    loss, pull, branch = map(page.text, ("ot-loss", "ot-pull", "ot-branch"))
    return float(loss), float(pull), branch


# --- numbers ---

# Off every bound, in any dtype: bounds are multiples of 0.05, or far from these.
RATIOS = 0.0137 + 0.05 * np.arange(80)
ADVANTAGES = [-2.5, -1.0, 0.0, 0.7, 3.0]
HYPER = {
    "clipped_surrogate": [
        {},
        dict(clip_eps=0.3, clip_eps_high=0.1),
        dict(clip_eps=0.1, dual_clip=1.5),
        dict(clip_eps=0.5, clip_eps_high=1.5, dual_clip=2.0),
    ],
    "geometric_mean_surrogate": [{}, dict(clip_eps=0.35, clip_eps_high=0.9)],
    "unclipped_surrogate": [{}],
    "policy_gradient": [{}, dict(old_prob=0.05)],
    "cispo": [{}, dict(low=0.8, high=1.2, old_prob=0.1)],
    "topr": [{}, dict(cap=0.5), dict(cap=2.0, old_prob=0.01)],
    "soft_gated_surrogate": [{}, dict(temperature=3.0, temperature_negative=0.5)],
    "vespo_weights": [
        {},
        dict(k=0.5, lambda_=1.0, k_negative=0.0, lambda_negative=4.0),
    ],
    "shaped_off_policy": [{}, dict(gamma=0.5, old_prob=0.05)],
    "binary_tv": [{}, dict(low=0.1, high=0.35, old_prob=0.24), dict(low=0.0)],
    "binary_kl": [{}, dict(low=0.02, high=0.1, old_prob=0.24), dict(low=0.0)],
    "quadratic_surrogate": [{}, dict(clip_eps=1.5)],
    "discovered_surrogate": [{}, dict(alpha=0.4, beta=2.0)],
    "kl_k2": [{}, dict(coef=0.0), dict(coef=2.0)],
    "kl_k3": [{}, dict(coef=0.0), dict(coef=2.0)],
}


def run(code: str) -> dict:
    """The names of a copied piece of Python, and its last line's value as `shown`."""
    lines = code.splitlines()
    names = {}
    exec("\n".join([*lines[:-1], f"shown = {lines[-1]}"]), names)
    return names


@functools.cache
def library(code: str, x64: bool) -> tuple[np.ndarray, np.ndarray]:
    """Loss and pull for all ratios and advantages, by the code that a reader copies."""
    with jax.enable_x64(x64):
        names = run(code)

        def loss(x, a):
            names["A"] = a
            return names["loss"](x)

        dtype = jnp.float64 if x64 else jnp.float32
        x, a = np.meshgrid(np.log(RATIOS), ADVANTAGES)
        x, a = (jnp.asarray(v.reshape(-1, 1), dtype) for v in (x, a))
        value, slope = jax.vmap(jax.value_and_grad(loss))(x, a)
        return np.asarray(value), -np.asarray(slope)[:, 0]


def test_every_mode_is_tested(engine):
    assert set(engine("Object.keys(oneToken.MODES)")) == set(HYPER)


def test_every_policy_term_of_the_library_is_a_mode(engine):
    modes = "Object.keys(oneToken.MODES).map((x) => oneToken.code(oneToken.start(x)))"
    code = "\n".join(engine(modes))
    for name, term in vars(jaxppo).items():
        room = getattr(term, "__module__", "").rpartition(".")[2]
        if room in ("_clipping", "_weighting", "_trust_region"):
            assert f"jaxppo.{name}(" in code, name


@pytest.mark.parametrize("mode", HYPER)
def test_numbers_are_the_librarys(engine, mode):
    for hyper in HYPER[mode]:
        state = engine("oneToken.start(argument)", mode) | hyper
        states = [
            state | {"ratio": r, "advantages": a} for a in ADVANTAGES for r in RATIOS
        ]
        found = engine("argument.map(oneToken.evaluate)", states)
        code = engine("oneToken.code(argument)", state)
        for x64, near in [(True, 1e-11), (False, 2e-5)]:
            loss, pull = library(code, x64)
            for key, wanted in [("loss", loss), ("pull", pull)]:
                got = np.array([x[key] for x in found])
                np.testing.assert_allclose(got, wanted, rtol=near, atol=near)


def log_of(ratio: float) -> jax.Array:
    """A log-ratio whose exponential is this ratio to the last bit, in float64."""
    x = float(np.log(ratio))
    for steps in range(-8, 9):
        near = jnp.array([x + steps * math.ulp(x)])
        if float(jnp.exp(near)[0]) == ratio:
            return near
    raise AssertionError(f"no logarithm of {ratio}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("mode", "hyper", "advantage", "bound"),
    [
        ("clipped_surrogate", {}, 1.0, 1.2),
        ("clipped_surrogate", dict(clip_eps_high=0.28), 1.0, 1.28),
        ("clipped_surrogate", {}, -1.0, 0.8),
        ("clipped_surrogate", dict(dual_clip=1.5), -1.0, 1.5),
        ("clipped_surrogate", {}, 0.0, 1.2),
        ("cispo", dict(low=0.8), 1.0, 0.8),
        ("cispo", dict(high=1.25), -1.0, 1.25),
        ("topr", dict(cap=0.75), -1.0, 0.75),
        ("discovered_surrogate", {}, 1.0, 1.0),
        ("discovered_surrogate", {}, -1.0, 1.0),
        ("binary_tv", {}, -1.0, 1.0),
        ("kl_k3", {}, 1.0, 1.0),
    ],
)
def test_at_a_bound_and_beside_it(engine, mode, hyper, advantage, bound):
    """To the last bit at it: the library's bounds are closed, and so must these be."""
    state = engine("oneToken.start(argument)", mode) | hyper
    near = [bound * (1 - 1e-9), bound, bound * (1 + 1e-9)]
    states = [state | {"ratio": r, "advantages": advantage} for r in near]
    found = engine("argument.map(oneToken.evaluate)", states)
    for ratio, s, got in zip(near, states, found, strict=True):
        names = run(engine("oneToken.code(argument)", s))
        x = log_of(ratio)
        loss, slope = jax.value_and_grad(names["loss"])(x)
        assert got["loss"] == pytest.approx(float(loss), rel=1e-12)
        assert got["pull"] == pytest.approx(-float(slope[0]), rel=1e-12, abs=1e-12)


def test_code_gives_the_number_shown(engine):
    """As it is copied, a line at a time, in float32."""
    for mode in HYPER:
        state = engine("oneToken.start(argument)", mode)
        state |= {"ratio": 0.55, "advantages": -1.5}
        got = engine("oneToken.evaluate(argument)", state)
        loss, pull = run(engine("oneToken.code(argument)", state))["shown"]
        assert got["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert got["pull"] == pytest.approx(float(pull[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "at", "branch"),
    [
        ("clipped_surrogate", dict(ratio=1.3), "clipped above"),
        ("clipped_surrogate", dict(ratio=1.2), "unclipped"),
        ("clipped_surrogate", dict(ratio=0.5), "unclipped"),
        ("clipped_surrogate", dict(ratio=0.5, advantages=-1), "clipped below"),
        ("clipped_surrogate", dict(ratio=3.5, advantages=-1), "unclipped"),
        (
            "clipped_surrogate",
            dict(ratio=3.5, advantages=-1, dual_clip=3),
            "dual-clipped",
        ),
        ("clipped_surrogate", dict(ratio=3.5, advantages=0), "no advantage"),
        ("cispo", dict(ratio=3), "weight held from above"),
        ("topr", dict(ratio=0.5, advantages=-1), "weight = ratio"),
        ("binary_tv", dict(ratio=2.1), "too far up"),
        ("binary_tv", dict(ratio=2.1, advantages=-1), "trusted"),
        ("quadratic_surrogate", dict(ratio=1.3), "past the optimum, pulled back"),
        ("discovered_surrogate", dict(ratio=0.5), "no drift"),
        ("kl_k2", dict(ratio=0.3, advantages=-1), "pulled back"),
    ],
)
def test_branches(engine, mode, at, branch):
    state = engine("oneToken.start(argument)", mode) | at
    assert engine("oneToken.evaluate(argument)", state)["branch"] == branch


# --- the page, in a browser ---


def test_keyboard_moves_everything(page):
    """Tab reaches each control; arrows, space and letters change it."""
    page.open()
    names = page.tabbed("ot-mode", 8)
    assert names == [
        *("ot-mode", "ot-ratio", "ot-advantages", "ot-clip_eps"),
        *("ot-clip_eps_high-use", "ot-dual_clip-use", "ot-reset", "ot-copy"),
    ]
    before = numbers(page)
    page.press("ot-ratio", Keys.ARROW_LEFT * 20)
    assert page.text("ot-ratio-value") == "1.10"
    assert numbers(page) == (-1.1, 1.1, "unclipped") != before
    page.press("ot-advantages", Keys.HOME)
    assert page.text("ot-advantages-value") == "-3.00"
    page.press("ot-dual_clip-use", Keys.SPACE)
    assert page.text("ot-dual_clip-value") == "3.00"
    page.press("ot-ratio", Keys.END)
    assert numbers(page) == (9.0, 0.0, "dual-clipped")
    page.press("ot-dual_clip-use", Keys.SPACE)
    assert page.text("ot-dual_clip-value") == "off"
    assert numbers(page) == (12.0, -12.0, "unclipped")
    page.press("ot-mode", "CISPO")
    assert page.script("return document.activeElement.id") == "ot-mode"
    assert numbers(page)[1:] == (-6.0, "weight held from above")
    page.press("ot-reset", Keys.ENTER)
    assert page.text("ot-ratio-value") == "1.30"


UNNAMED = """
const all = [...document.querySelectorAll("#one-token :is(input, select)")];
return all.filter((x) => !x.labels.length && !x.ariaLabel).map((x) => x.id);
"""


def test_every_control_has_a_name_and_shows_its_focus(page):
    for mode in HYPER:
        page.open(f"mode={mode}")
        assert page.script(UNNAMED) == []
    for name in page.tabbed("ot-mode", 5):
        page.press(name, Keys.SHIFT)  # a key, so that the focus is the keyboard's
        assert page.find(name).value_of_css_property("outline-width") == "3px", name


def test_what_is_read_out(page):
    page.open()
    assert page.find("ot-status").get_attribute("role") == "status"
    page.press("ot-ratio", Keys.ARROW_RIGHT)
    until(lambda: page.text("ot-status"))
    assert page.text("ot-status") == "loss -1.2000, pull 0.0000, clipped above"
    label = page.find("ot-objective").get_attribute("aria-label")
    assert label == "objective 1.2000 at ratio 1.31"


@pytest.mark.parametrize("mode", HYPER)
def test_numbers_shown_are_those_of_the_code_shown(page, mode):
    page.open(f"mode={mode}&ratio=2.3&advantages=-1.5")
    loss, pull = run(page.text("ot-code"))["shown"]
    got = numbers(page)
    assert got[0] == pytest.approx(float(loss), abs=6e-5)
    assert got[1] == pytest.approx(float(pull[0]), abs=6e-5)


def test_the_address_restores_a_state(page):
    page.open()
    page.press("ot-mode", "TOPR")
    page.press("ot-cap", Keys.ARROW_LEFT * 4)
    page.press("ot-advantages", Keys.HOME)
    page.press("ot-ratio", Keys.ARROW_RIGHT)
    until(lambda: "ratio=1.31" in page.driver.current_url)
    wanted, address = numbers(page), page.driver.current_url.partition("#")[2]
    page.open()
    assert numbers(page) != wanted
    page.script(f"location.hash = {json.dumps(address)}")
    until(lambda: numbers(page) == wanted)
    page.open(address)
    assert numbers(page) == wanted and page.text("ot-cap-value") == "0.80"
    page.open("mode=clipped_surrogate&ratio=1.5&advantages=-1&dual_clip=1.25")
    assert numbers(page) == (1.25, 0.0, "dual-clipped")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("mode=nothing&ratio=2", (-1.2, 0.0, "clipped above")),
        ("mode=constructor", (-1.2, 0.0, "clipped above")),
        ("some-heading", (-1.2, 0.0, "clipped above")),
        ("mode=clipped_surrogate&ratio=NaN&clip_eps=x", (-1.2, 0.0, "clipped above")),
        ("mode=unclipped_surrogate&ratio=99&dual_clip=3", (-4.0, 4.0, "unclipped")),
        ("mode=unclipped_surrogate&ratio=-1", (-0.01, 0.01, "unclipped")),
    ],
)
def test_an_address_that_makes_no_sense_does_no_harm(page, address, wanted):
    page.open(address)
    assert numbers(page) == wanted


def test_an_address_may_be_finer_than_a_slider(page):
    page.open("mode=unclipped_surrogate&ratio=1.23456")
    assert page.text("ot-ratio-value") == "1.23456" and "[1.23456]" in page.text(
        "ot-code"
    )
    assert numbers(page) == (-1.2346, 1.2346, "unclipped")


def test_copying(page):
    page.open()
    page.press("ot-copy", Keys.ENTER)
    until(lambda: page.text("ot-copy") in ("Copied", "Selected"))


# WCAG's contrast, at least: 4.5 for text, 3 for what is drawn.
WORDS = ["label", "output", "dt", "dd", "select", "button", "pre", "figcaption"]
CONTRAST = {
    ("color", 4.5): [f".one-token {x}" for x in WORDS],
    ("fill", 4.5): [".ot-plots text"],
    ("stroke", 3): [".ot-curve", ".ot-axis"],
    ("fill", 3): [".ot-here"],
}
CUT_OFF = """
const all = [...document.querySelectorAll("#one-token :not(pre, pre *)")];
return all.filter((x) => x.getBoundingClientRect().right > innerWidth).map((x) => x.id);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_and_can_be_read(page, scheme, width, tmp_path):
    page.look(scheme, width)
    for mode in HYPER:
        page.open(f"mode={mode}&advantages=-1")
        assert page.script("return document.documentElement.scrollWidth") <= width
        assert page.script(CUT_OFF) == []
    page.open("mode=clipped_surrogate&ratio=1.6&advantages=1")
    _, paper = page.colours("#ot-branch", "color")[0]
    assert (np.mean(paper) < 128) == (scheme == "dark")
    for (style, least), selectors in CONTRAST.items():
        for selector in selectors:
            pairs = page.colours(selector, style)
            assert pairs, selector
            for ink, paper in pairs:
                assert contrast(ink, paper) >= least, (selector, ink, paper)
    page.driver.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_readers_choice_of_theme_is_stronger(page, theme):
    page.look("dark" if theme == "light" else "light", 1280)
    page.open()
    page.script(f"document.body.dataset.theme = '{theme}'")
    ink, _ = page.colours("#ot-loss", "color")[0]
    assert (np.mean(ink) > 128) == (theme == "dark")
