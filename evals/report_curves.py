"""The report's learning curves: held-out loss against steps and against what was billed, and after each medium.

A line of `metrics.jsonl` counts when it holds `validation` (see `validation.py`); its place on the cost axis is
`flops.total`, what all accounts together were billed so far. The run with SALT is drawn twice over cost: from
nothing, and again, dashed, beginning at what the small model's own training cost. A run without validations shows its
training loss alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from evals.charts import Line, line_chart
from evals.report_sections import STAGE_NAMES

STAGE_STYLE = {"large_salt": 0, "large_baseline": 1, "small": 2}
_AFTER = {"none": "Text before any medium", "image": "After a picture", "audio": "After sound", "video": "After video"}


def _validations(metrics: Iterable[Mapping[str, Any]]) -> list[tuple[float, float | None, Mapping[str, Any]]]:
    """(step, FLOPs billed so far or None, validation) of each validation, by step."""
    points = {}
    for line in metrics:
        validation = line.get("validation")
        if isinstance(validation, dict) and isinstance(line.get("step"), int | float):
            flops = line.get("flops")
            cost = flops.get("total") if isinstance(flops, dict) else None
            points[line["step"]] = (line["step"], cost, validation)
    return [points[step] for step in sorted(points)]


def curves_section(metrics: Mapping[str, list[dict[str, Any]]], teacher_training: float) -> str:
    """Held-out loss against steps and against billed cost, per modality, and the training loss."""
    curves = {stage: _validations(metrics[stage]) for stage in STAGE_STYLE if metrics.get(stage)}
    curves = {stage: points for stage, points in curves.items() if points}

    def lines(key: str, *, cost: bool = False) -> list[Line]:
        found = []
        for stage, points in curves.items():
            pairs = [(p[1] if cost else p[0], p[2].get(key)) for p in points if not cost or p[1]]
            found.append(Line(STAGE_NAMES[stage], *map(list, zip(*pairs, strict=True)), style=STAGE_STYLE[stage])
                         if pairs else Line(STAGE_NAMES[stage], [], []))  # fmt: skip
            if cost and stage == "large_salt" and teacher_training and pairs:
                name = "large, with SALT and its teacher's training"
                x, y = [p[0] + teacher_training for p in pairs], [p[1] for p in pairs]
                found.append(Line(name, x, y, style=0, dashed=True))
        return found

    titles = ("Held-out loss by step", "Held-out loss by billed cost")
    main = [
        (titles[0], line_chart(titles[0], lines("loss"), x_label="steps", y_label="nats")),
        (titles[1], line_chart(titles[1], lines("loss", cost=True), x_label="FLOPs billed", y_label="nats")),
    ]
    small = [(title, line_chart(title, lines(key), x_label="steps", y_label="nats")) for key, title in _AFTER.items()]
    training = line_chart("Training loss", [_training_line(stage, metrics[stage]) for stage in STAGE_STYLE
                                            if metrics.get(stage)], x_label="steps", y_label="nats")  # fmt: skip
    (small if curves else main).append(("Training loss", training))
    if not any(chart for _, chart in main + small):
        return ""
    shown = [stage for stage in STAGE_STYLE if metrics.get(stage)]
    legend = "".join(f'<li class="s{STAGE_STYLE[s]}"><i></i><span>{STAGE_NAMES[s]}</span></li>' for s in shown)
    if teacher_training and "large_salt" in curves:
        legend += '<li class="s0"><i class="dashed"></i><span>the small model&rsquo;s training billed too</span></li>'
    return (
        '<section id="curves"><h2>How it learned</h2><p class="about">Loss in nats per target token on held-out '
        "documents, measured during training.</p>"
        f'<ul class="legend">{legend}</ul>{_grid(main, "charts")}{_grid(small, "charts small")}</section>'
    )


def _grid(charts: Iterable[tuple[str, str]], kind: str) -> str:
    drawn = [f'<div class="sheet"><h3>{escape(title)}</h3>{chart}</div>' for title, chart in charts if chart]
    return f'<div class="{kind}">{"".join(drawn)}</div>' if drawn else ""


def _training_line(stage: str, metrics: list[dict[str, Any]]) -> Line:
    pairs = [(line["step"], line["loss"]) for line in metrics
             if isinstance(line.get("step"), int) and isinstance(line.get("loss"), int | float)]  # fmt: skip
    # about a hundred points, each the mean of its stretch
    size = max(1, len(pairs) // 100)
    groups = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    x = [group[-1][0] for group in groups]
    y = [sum(loss for _, loss in group) / len(group) for group in groups]
    return Line(STAGE_NAMES[stage], x, y, style=STAGE_STYLE[stage], dots=False)
