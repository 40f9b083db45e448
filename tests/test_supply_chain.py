"""What comes with us: packages and their licences, the wheel alone, the workflows."""

import email
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import jaxppo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {"jax", "jaxlib", "optax", "jaxtyping", "numpy", "scipy", "ml-dtypes"}
CORE |= {"absl-py", "opt-einsum", "wadler-lindig"}
PERMISSIVE = re.compile(
    r"(The )?(Apache|MIT|BSD|0BSD|[23]-Clause BSD|ISC|PSF|Python Software Foundation"
    r"|Zlib|CC0|Unlicense|HPND|BSL-1|Boost)",
    re.IGNORECASE,
)
# Used as they are, by import, by the examples, the tests or the site's build alone.
STATED = {
    "certifi": "MPL-2.0",
    "docutils": "public domain and BSD; GPL for Emacs's mode, which no wheel has",
    "hypothesis": "MPL-2.0",
    "pebble": "LGPL",
    "tqdm": "MPL-2.0 AND MIT",
    "zss": "no metadata; BSD in its repository",
}
PUBLISH = ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


# --- packages ---


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(requirements):
    """What they need, and what that needs, as far as it is here."""
    found, queue = {}, [Requirement(x) for x in requirements]
    while queue:
        wanted = queue.pop()
        name, extras = plain(wanted.name), wanted.extras | {""}
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        if extras <= found.get(name, set()) or name == "jaxppo":
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = found.get(name, set()) | extras
        for need in map(Requirement, needs):
            marker, need.marker = need.marker, None
            if not marker or any(marker.evaluate({"extra": x}) for x in extras):
                queue.append(need)
    return set(found)


def licence(name):
    """As its metadata say it: an expression, else classifiers, else a line of text."""
    of = importlib.metadata.metadata(name)
    kinds = [x.split(" :: ") for x in of.get_all("Classifier", [])]
    named = [x[-1] for x in kinds if x[0] == "License" and x[-1] != "OSI Approved"]
    text = (of.get("License") or "").strip().partition("\n")[0]
    return of.get("License-Expression") or " AND ".join(named) or text


def is_permissive(text):
    """Of every part, or of one that may be chosen."""
    parts = text.strip("()").split(" AND ")
    return all(any(map(PERMISSIVE.match, x.split(" OR "))) for x in parts)


def test_the_core_needs_little():
    assert installed(PROJECT["dependencies"]) == CORE


def test_licences():
    """Permissive, but for the few that are stated, none of which the library needs."""
    everything = [*PROJECT["dependencies"], *(x for xs in EXTRAS.values() for x in xs)]
    names = installed(everything)
    assert len(names) > 60 and names > CORE
    other = {x: licence(x) for x in names if not is_permissive(licence(x))}
    assert set(other) <= set(STATED), other
    assert not set(STATED) & CORE
    for name, text in other.items():
        assert re.search("MPL|Mozilla|LGPL|Public Domain|^$", text), (name, text)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT", True),
        ("MIT OR AFL-2.1", True),
        ("Apache Software License", True),
        ("", False),
        ("GPL-3.0-only", False),
        ("MPL-2.0 AND MIT", False),
        ("GNU Library or Lesser General Public License (LGPL)", False),
        ("Proprietary", False),
    ],
)
def test_what_is_permissive(text, fine):
    assert is_permissive(text) == fine


ALONE = """
import importlib.metadata, sys
import jax, jax.numpy as jnp, optax
import jaxppo

def loss_fn(params, b):
    log_probs, entropy = jaxppo.categorical(b["obs"] @ params, b["actions"])
    return jaxppo.ppo_loss(log_probs, b["old"], b["adv"], entropy=entropy)

batch = dict(obs=jnp.ones((4, 3)), actions=jnp.arange(4) % 2)
batch |= dict(old=jnp.full(4, -0.7), adv=jnp.array([1.0, -1.0, 2.0, 0.5]))
loss, _ = loss_fn(jnp.zeros((3, 2)), batch)
assert jnp.isfinite(loss.value)
learner = jaxppo.learner(loss_fn, optax.adam(1e-2))
state = learner.init(jnp.zeros((3, 2)))
state, metrics = jax.jit(learner.update)(state, batch, jax.random.key(0))
assert jnp.any(state.params != 0) and jaxppo.finalize(metrics)["skipped"] == 0
assert jaxppo.__file__.startswith(sys.prefix), jaxppo.__file__
print(*(x.metadata["Name"] for x in importlib.metadata.distributions()))
"""


# Not all of it is right: what the comments say, a type checker must find.
TYPED = """
from typing import assert_type

import jax
import jax.numpy as jnp
import jaxppo

x = jnp.zeros((2, 3))
assert_type(jaxppo.clipped_surrogate(x, x, clip_eps=0.1), jax.Array)
assert_type(jaxppo.token_mean(x, x > 0).value, jax.Array)
assert_type(jaxppo.gae(x, x, 0.9, lambda_=0.8).returns, jax.Array)
jaxppo.clipped_surrogate(x, x, clip_epsilon=0.1)  # unexpected keyword
jaxppo.clipped_surrogate(x, "1")  # bad argument
jaxppo.surrogate(x, x)  # missing attribute
jaxppo.token_mean(x) + 1  # unsupported operand
"""


def quietly(where, *command):
    """What a command says; it must not fail."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        list(map(str, command)),
        **dict(capture_output=True, text=True, env=env, cwd=where),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source archive, and the wheel that is built of it."""
    out = tmp_path_factory.mktemp("dist")
    quietly(out, sys.executable, "-m", "build", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def home(built, tmp_path_factory):
    """The Python of an empty environment, with the wheel and what it names."""
    home = tmp_path_factory.mktemp("home")
    quietly(home, sys.executable, "-m", "venv", "--without-pip", home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip, wheel = (sys.executable, "-m", "pip", "--python", python), *built.glob("*.whl")
    quietly(home, *pip, "install", "--no-compile", wheel)
    return python


def test_the_wheel_alone(home, tmp_path):
    there = quietly(tmp_path, home, "-I", "-c", ALONE).split()
    assert {plain(name) for name in there} == CORE | {"jaxppo"}


def test_the_wheel_is_typed(home, tmp_path):
    """What a user's checker makes of a user's script."""
    script = tmp_path / "script.py"
    script.write_text(TYPED)
    check = sys.executable, "-m", "pyrefly", "check", "--python-interpreter-path", home
    done = subprocess.run(
        [*map(str, check), "--preset=strict", "--output-format=json", str(script)],
        **dict(capture_output=True, text=True, cwd=tmp_path),
    )
    found = {(x["line"], x["name"]) for x in json.loads(done.stdout)["errors"]}
    wrong = [i for i, x in enumerate(TYPED.splitlines(), 1) if "  # " in x]
    assert len(wrong) == 4 and {line for line, _ in found} == set(wrong), found


def test_what_is_built(built):
    """The library and its metadata; no tests, no data; links that hold."""
    version = importlib.metadata.version("jaxppo")
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        of = files.read(f"jaxppo-{version}.dist-info/METADATA").decode()
    library = {str(x.relative_to(ROOT)) for x in (ROOT / "jaxppo").rglob("*.py")}
    inside = {x for x in names if ".dist-info/" not in x}
    assert inside == library | {"jaxppo/py.typed"}
    assert any(x.endswith("/licenses/LICENSE") for x in names)
    assert wheel.stat().st_size < 2**18 and archive.stat().st_size < 2**18

    metadata = email.message_from_string(of)
    urls = dict(x.split(", ") for x in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert {plain(x) for x in metadata.get_all("Provides-Extra")} == set(EXTRAS)
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["License-Expression"] == "Apache-2.0"
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    ours = [x for x in links if f"/v{version}/" in x]
    assert len(ours) > 15 and all(x.startswith(("https://", "#")) for x in links)
    for link in ours:
        path = link.partition(f"/v{version}/")[2].partition("#")[0]
        assert (ROOT / path).exists(), link


def test_one_version():
    """In the package, the changelog and the citation."""
    version = importlib.metadata.version("jaxppo")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.findall(r"^## \[(\d.*?)\] - (\S+)", changes, re.MULTILINE)[0]
    assert newest == (version, str(cited["date-released"]))
    assert cited["version"] == version == jaxppo.__version__


# --- workflows ---


def faults(text):
    """What a workflow may not do."""
    flow, found = yaml.safe_load(text), []
    on = flow.get(True, flow.get("on"))  # YAML 1.1 reads `on` as true
    for name in re.findall(r"uses: *(.*)", text):
        if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", name):
            found.append(f"not pinned: {name}")
    if {"pull_request_target", "workflow_run"} & set(on):
        found.append("runs others' code with our rights")
    if flow.get("permissions") != {"contents": "read"}:
        found.append("permissions")
    for job in flow["jobs"].values():
        # To publish is to prove who we are; nothing else is done with that right.
        if "permissions" in job:
            uses = [step.get("uses", "").partition("@")[0] for step in job["steps"]]
            proves = job["permissions"] == {"id-token": "write"} and uses == PUBLISH
            if not (proves and "environment" in job):
                found.append("permissions of a job")
        if not job.get("timeout-minutes", 999) <= 120:
            found.append("no timeout")
        for step in job["steps"]:
            if "checkout@" in step.get("uses", ""):
                if step.get("with", {}).get("persist-credentials") is not False:
                    found.append("credentials stay")
            if re.search(r"\$\{\{|secrets", step.get("run", "")):
                found.append(f"text put into a shell: {step['run']}")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_no_rights(path):
    assert not faults(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"@[0-9a-f]{40} # v7.0.1", "@v7.0.1"),
        (r"@[0-9a-f]{40} # v7.0.1", "@main # v7.0.1"),
        (r"(@[0-9a-f]{40}) # v7.0.1", r"\1"),
        ("contents: read", "contents: write"),
        ("permissions:\n  contents: read\n", ""),
        ("persist-credentials: false", "fetch-depth: 0"),
        ("pull_request:", "pull_request_target:"),
        ("timeout-minutes: 120", "continue-on-error: true"),
        ("run: .ci/run", "run: .ci/run ${{ github.head_ref }}"),
        ("    timeout", "    permissions: write-all\n    timeout"),
        ("id-token: write", "id-token: write\n      contents: write"),
        ("    timeout", "    permissions:\n      id-token: write\n    timeout"),
    ],
)
def test_the_check_itself_can_fail(old, new):
    name = "publish" if "id-token" in old + new else "ci"
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    assert re.search(old, text) and faults(re.sub(old, new, text, count=1))


def test_workflows_run_what_a_change_must_pass():
    runs = lambda name: [
        step["run"]
        for job in yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())[
            "jobs"
        ].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert runs("ci") == [".ci/run"] and "python3 run.py audit" in runs("audit")
    assert ".ci/run" in runs("publish")
    dependabot = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())
    assert dependabot["updates"][0]["package-ecosystem"] == "github-actions"
