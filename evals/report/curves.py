"""The report's learning curves: held-out loss against steps and against cost, and after each modality.

A line of `metrics.jsonl` counts when it has `validation` (see `validation.py`); its cost is `flops.total`. The run with
SALT is drawn twice over cost: from zero, and dashed from the cost of the small model's training. Without validations
the training loss alone is drawn.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from brine.evals.report.charts import Series, line_chart
from brine.evals.report.tables import STAGE_NAMES

STAGE_STYLE = {"large_salt": 0, "large_baseline": 1, "small": 2}
_CONTEXTS = {"none": "Text before any media", "image": "After an image", "audio": "After audio", "video": "After video"}
_WITH_TEACHER = "large, with SALT and its teacher's training"


def _validations(metrics: Iterable[Mapping[str, Any]]) -> list[tuple[float, float | None, Mapping[str, Any]]]:
    """(step, FLOPs so far or None, validation) of each validation, by step."""
    points = {}
    for line in metrics:
        validation, step, flops = line.get("validation"), line.get("step"), line.get("flops")
        if isinstance(validation, dict) and isinstance(step, int | float):
            points[step] = (step, flops.get("total") if isinstance(flops, dict) else None, validation)
    return [points[step] for step in sorted(points)]


def curves_section(metrics: Mapping[str, list[dict[str, Any]]], teacher_training: float) -> dict[str, Any] | None:
    """Held-out loss against steps and cost, per modality context, and the training loss; None without any.

    metrics: stage -> lines of its metrics.jsonl. teacher_training: FLOPs of the small model's training.
    """
    stages = [stage for stage in STAGE_STYLE if metrics.get(stage)]
    curves = {stage: points for stage in stages if (points := _validations(metrics[stage]))}

    def by_step(key: str) -> list[Series]:
        return [_series(stage, [(step, found.get(key)) for step, _, found in curves[stage]]) for stage in curves]

    by_cost = []
    for stage, points in curves.items():
        pairs = [(cost, found.get("loss")) for _, cost, found in points if cost]
        by_cost.append(_series(stage, pairs))
        if stage == "large_salt" and teacher_training:
            x, y = [cost + teacher_training for cost, _ in pairs], [loss for _, loss in pairs]
            by_cost.append(Series(_WITH_TEACHER, x, y, style=0, dashed=True))

    main = [
        _chart("Held-out loss by step", by_step("loss"), "steps"),
        _chart("Held-out loss by cost", by_cost, "FLOPs"),
    ]
    small = [_chart(title, by_step(key), "steps") for key, title in _CONTEXTS.items()]
    training = _chart("Training loss", [_training_loss(stage, metrics[stage]) for stage in stages], "steps")
    (small if curves else main).append(training)
    main, small = ([pair for pair in charts if pair[1]] for charts in (main, small))
    legend = [{"style": STAGE_STYLE[stage], "name": STAGE_NAMES[stage]} for stage in stages]
    if teacher_training and "large_salt" in curves:
        legend.append({"style": 0, "name": "the small model's training added", "dashed": True})
    if not main and not small:
        return None
    return {"id": "curves", "legend": legend, "main": main, "small": small}


def _chart(title: str, lines: list[Series], x_label: str) -> tuple[str, str]:
    return title, line_chart(title, lines, x_label=x_label, y_label="nats")


def _series(stage: str, pairs: list[tuple[float, Any]], **more: Any) -> Series:
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Series(STAGE_NAMES[stage], x, y, style=STAGE_STYLE[stage], **more)


def _training_loss(stage: str, metrics: list[dict[str, Any]]) -> Series:
    """About a hundred points, each the mean of its steps."""
    pairs = [(line["step"], line["loss"]) for line in metrics
             if isinstance(line.get("step"), int) and isinstance(line.get("loss"), int | float)]  # fmt: skip
    size = max(1, len(pairs) // 100)
    groups = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    return _series(stage, means, dots=False)
