"""What the documents say is true, and their site builds without the internet."""

import html
import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.test_structure import MODULES


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
