"""An experiment's page: one HTML file without script or link to any host, which follows a light or dark setting.

It shares styles and macros with a run's report (`brine.evals.report`). Templates escape all text, and a content
security policy allows nothing but the page's own styles.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from brine.common.files import write_text
from brine.evals.report.page import TEMPLATES as REPORT_TEMPLATES
from brine.experiments.page import sections
from brine.experiments.page.records import PageData

_LINKS = {"expectation": "Question", "forest": "Differences", "anchor": "Anchor", "cost": "Cost",
          "measures": "Measures", "record": "Record"}  # fmt: skip


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader

    folders = [Path(__file__).parent / "templates", REPORT_TEMPLATES]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"links": _LINKS}
    return environment


def render(data: PageData, *, day: str = "") -> str:
    """The page as text; the same records give the same text."""
    shown = [
        sections.expectation_section(data),
        sections.forest_section(data),
        sections.anchor_section(data),
        sections.cost_section(data),
        sections.measures_section(data),
        sections.record_section(data),
    ]
    return _environment().get_template("page.html").render(
        name=data.name,
        lead=data.question,
        cards=sections.cards(data),
        sections=[section for section in shown if section],
        day=day,
        numbers="table.json and in the runs' folders",
    )  # fmt: skip


def write_page(path: Path, data: PageData, *, day: str = "") -> Path:
    """Write the page, whole or not at all; returns its path."""
    write_text(path, render(data, day=day).encode("utf-8", errors="replace").decode("utf-8"))
    return path
