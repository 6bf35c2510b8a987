"""What the documents say is true, and their site builds without the internet."""

import ast
import html
import os
import re
import subprocess
import sys
import tomllib

import pytest

from brine.common import renamed
from brine.data.corpus import store
from brine.data.filters import filter_log
from tests.paths import ROOT
from tests.test_structure import BELOW, MODULES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the dependency group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_opens_offline(site):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "architecture.html", "CONTRIBUTING.html", "data/index.html"} <= pages.keys()
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?((?:https?:)?//[^">\s]+)', text)
        assert not loaded, f"{name} loads {loaded} from the internet"


@pytest.mark.slow
def test_every_module_has_its_docstrings_in_the_site(site):
    anchors = {
        anchor for path in site.glob("api/*.html") for anchor in re.findall(r'\bid="([\w.]+)"', path.read_text("utf-8"))
    }
    missing = [name for name in MODULES if not name.rpartition(".")[2].startswith("__") and name not in anchors]
    assert not missing and "brine.cli" in anchors, missing


@pytest.mark.slow
def test_indented_text_stays_as_it_stands(site):
    """Docstrings are plain text: a table of `brine.kernels.linear_loss.api` is code, and no `_` or `*` is lost."""
    text = html.unescape(re.sub(r"<[^>]*>", "", (site / "api" / "brine.kernels.linear_loss.html").read_text("utf-8")))
    assert "sum_i w_i [ (1 - d) CE_i + d T^2 CE(teacher_T,i || student_T,i) + z lse_i^2 ]" in text
    assert "-> loss () float32 (float64 for float64 hidden)" in text


def defined_in(path, name):
    """Whether a file defines a name such as `Class.method`."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = found[0].body
    return True


def test_each_hop_of_the_architecture_exists():
    walks = re.split(r"^## ", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.M)[2:]
    assert len(walks) == 3
    for walk in walks:
        numbered = re.findall(r"^\d+\. .*$", walk, re.M)
        hops = re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`:", walk, re.M)
        assert 4 <= len(hops) == len(numbered) <= 8, walk
        missing = [hop for hop in hops if not (ROOT / hop[0]).is_file() or not defined_in(*hop)]
        assert not missing, f"docs/architecture.md names what is not there: {missing}"


def test_the_drawing_of_packages_is_the_order_of_imports():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.search(r"```text\n(.*?)```", text, re.S).group(1).splitlines()
    line_of = {word: number for number, line in enumerate(lines) for word in line[:30].split() if word.isalpha()}
    assert line_of.keys() == {*BELOW, "brine"}
    for package, below in BELOW.items():
        assert all(line_of[package] < line_of[other] for other in below.split()), package


def test_known_good_versions_are_within_the_bounds():
    """constraints.txt pins each requirement of a plain `uv run` (extras apart), and nothing from elsewhere."""
    requirements = pytest.importorskip("packaging.requirements")
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.+!-]+", line)]
    assert not wrong, f"constraints.txt holds more than name==version: {wrong}"
    pinned = dict(line.split("==") for line in lines)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups, extras = settings["dependency-groups"], settings["project"]["optional-dependencies"]
    always = [
        *settings["project"]["dependencies"],
        *(one for name in settings["tool"]["uv"]["default-groups"] for one in groups[name]),
    ]
    for text in [*always, *(one for extra in extras.values() for one in extra)]:
        requirement = requirements.Requirement(text)
        version = pinned.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert version or text not in always, f"constraints.txt does not pin {requirement.name}"
        assert version is None or requirement.specifier.contains(version, prereleases=True), f"{version} is not {text}"


def test_formats_are_those_that_contributing_promises():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    promised = {name: int(number) for name, number in re.findall(r"^\| ([\w ]+) \(.*?\) \| (\d+) \|", text, re.M)}
    assert promised == {
        "encoded corpus": store.FORMAT,
        "training checkpoint": renamed.FORMAT,
        "filter passes": filter_log.FORMAT,
    }
