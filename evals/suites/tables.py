"""Suites and what was measured on them, as aligned text."""

from collections.abc import Mapping
from typing import Any

from brine.common.tables import as_text, sanitize, table
from brine.data.document import Text, modality_of
from brine.evals.config import EvalConfig
from brine.evals.measurement import Measurement
from brine.evals.run_files import format_interval
from brine.evals.suites.case import PARTS
from brine.evals.suites.measure import SuiteResult
from brine.evals.suites.suite import Suite

MAX_REASONS = 5
PREVIEW_CHARS = 120


def summarize(measured: Mapping[str, Measurement], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """{measure: {"value", "low", "high", "num_cases", "unit"}}, with the present intervals over cases."""
    found = {}
    for name, each in measured.items():
        interval = config.interval(each.numerator, each.denominator, one_minus=each.spec.one_minus)
        ends = {"value": each.value, "low": interval.low, "high": interval.high}
        found[name] = ends | {"num_cases": len(each), "unit": each.spec.unit}
    return found


def format_result(suite: Suite, result: SuiteResult, summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of each part, and what was not measured."""
    lines = [f"{suite.name}@{suite.version} ({suite.digest[:12]}), weights {result.info['weights'][:12]}, "
             f"{result.info['precision']} on {result.info['machine']}"]  # fmt: skip
    for part, measured in summaries.items():
        rows = [
            (sanitize(name, 80), entry["num_cases"], format_interval(entry, "value", "z.4f"), entry["unit"], role)
            for name, entry in measured.items()
            for role in ["primary" if name == suite.primary else "guard" if name in suite.guards else ""]
        ]
        absent = [spec.name for spec in suite.measures if spec.name not in measured]
        rows += [(sanitize(name, 80), 0, "not measured", "", "") for name in absent]
        lines.append("\n" + as_text(table((part, "cases", "value [interval over cases]", "unit", "role"), rows)))
        if seen := (result.info["num_trained_on"] or {}).get(part):
            lines.append(f"the run was trained on {seen} cases of {part}, which are not held out for it")
    if all(seen is None for seen in result.info["num_trained_on"].values()):
        lines.append("overlap with the training set cannot be checked: the training corpus is missing")
    missing = result.info["not_measured"]
    for line in missing[:MAX_REASONS]:
        lines.append(f"not measured ({line['measure']}): {line['case'][:16]}, {sanitize(line['reason'], 300)}")
    if len(missing) > MAX_REASONS:
        lines.append(f"not measured: {len(missing) - MAX_REASONS:,} more")
    return "\n".join(lines)


def format_suite(suite: Suite, *, part: str, num_cases: int) -> str:
    """Cells, measures and origin of a suite, and the first cases of one part."""
    counts: dict[tuple[str, int], dict[str, int]] = {}
    for cell in suite.info["cells"]:
        counts.setdefault((cell["kind"], cell["level"]), {})[cell["part"]] = cell["cases"]
    rows = [(sanitize(kind, 80), level, *(found.get(part, 0) for part in PARTS)) for (kind, level), found in
            sorted(counts.items())]  # fmt: skip
    total = [suite.info["num_cases"][part] for part in PARTS]
    lines = [f"{suite.name}@{suite.version}, digest {suite.digest}", ""]
    lines.append(as_text(table(("kind", "level", *PARTS), rows, foot=("all", "", *total))))
    rows = [
        (sanitize(spec.name, 80), "lower" if spec.lower_is_better else "higher", spec.unit, role)
        for spec in suite.measures
        for role in ["primary" if spec.name == suite.primary else "guard" if spec.name in suite.guards else ""]
    ]
    lines += ["", as_text(table(("measure", "better", "unit", "role"), rows)), ""]
    lines += [
        f"made from {sanitize(source['name'])} ({source['format']}): {source['documents']:,} documents of "
        f"{', '.join(source['splits'])}"
        for source in suite.info["made_from"]
    ]
    lines += [f"skipped: {count:,} with {sanitize(reason)}" for reason, count in suite.info["skipped"].items()]
    for case in suite.cases_in(part)[:num_cases]:
        content = " ".join(
            repr(each.text[:PREVIEW_CHARS]) if isinstance(each, Text) else f"<{modality_of(each)} {each.path[6:18]}>"
            for each in case.parts
        )
        lines.append(f"{case.id[:12]} {part} {sanitize(case.kind)} {case.level}: {sanitize(content, 300)}")
    return "\n".join(lines)
