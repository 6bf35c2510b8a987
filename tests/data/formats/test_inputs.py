"""The list of kinds of input (tests/data/README.md) names tests that exist, and leaves no format out.

A test that is renamed, or whose example is taken out, would leave a promise that nobody holds. Files are collected by
pytest itself in this process, so that the ids in brackets are those that it would run.
"""

import re
from pathlib import Path

import pytest

from brine.data.formats.open import FORMATS

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in README.splitlines() if line.startswith("| ") and "`" in line]
NAME = re.compile(r"`([\w./]+\.py)::(test_[^`]+)`")


def files() -> dict[str, set[str]]:
    """File -> the tests that the list names in it."""
    named: dict[str, set[str]] = {}
    for _, *cells in ROWS:
        for file, test in NAME.findall(" ".join(cells)):
            named.setdefault(file, set()).add(test)
    return named


@pytest.mark.slow
@pytest.mark.parametrize("file", files())
def test_every_test_that_is_named_exists(request, file):
    module = pytest.Module.from_parent(request.session, path=(HERE / file).resolve())
    found = {item.name for item in module.collect()}
    missing = files()[file] - found
    assert not missing, f"{file} has no {', '.join(sorted(missing))}: name its successor in tests/data/README.md"


def test_every_kind_has_three_examples():
    """A plain, an odd and a hostile one, each another."""
    for kind, *cells in ROWS:
        found = [NAME.findall(cell) for cell in cells]
        assert [len(names) for names in found] == [1, 1, 1] and len({names[0] for names in found}) == 3, kind


def test_every_format_is_in_the_list():
    kinds = " ".join(row[0] for row in ROWS)
    assert not [name for name in FORMATS if f"`{name}`" not in kinds]
