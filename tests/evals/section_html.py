"""One section of a report alone, from the template that a page includes for each."""

from collections.abc import Mapping
from typing import Any

from brine.evals.report import page


def section_html(section: Mapping[str, Any]) -> str:
    return page._environment().get_template("section.html").render(section=section)
