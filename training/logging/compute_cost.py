"""FLOP accounting: FLOPs and seconds in five categories.

`student` is the training of the large model; `teacher_forward`, `scoring`, `labelling` and `teacher_training` are the
cost of the small one, so every saving can be quoted with and without the teacher. FLOPs are counted from shapes
and part of a checkpoint; seconds are rank 0's wall clock, a record only. Steps lost to a kill are not counted, steps
that were rolled back are; validation is not.
"""

from collections.abc import Mapping
from pathlib import Path

from brine.common.files import write_json

COST_CATEGORIES = ("student", "teacher_forward", "scoring", "labelling", "teacher_training")


class CostAccounting:
    """FLOPs (int, exact) and seconds (float) by category."""

    def __init__(self):
        self.flops = dict.fromkeys(COST_CATEGORIES, 0)
        self.seconds = dict.fromkeys(COST_CATEGORIES, 0.0)

    def add_cost(self, cost_category: str, *, flops: int = 0, seconds: float = 0.0) -> None:
        """Add to a category. Raises ValueError for an unknown category or a negative amount."""
        if cost_category not in COST_CATEGORIES:
            raise ValueError(f"unknown cost category {cost_category!r}: choose one of {', '.join(COST_CATEGORIES)}")
        if flops < 0 or seconds < 0:
            raise ValueError(f"cannot add {flops} FLOPs and {seconds} s to {cost_category}: give no negative amount")
        self.flops[cost_category] += int(flops)
        self.seconds[cost_category] += seconds

    def total_flops(self) -> int:
        """FLOPs of all categories."""
        return sum(self.flops.values())

    def total_seconds(self) -> float:
        """Seconds of all categories."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{category: {"flops": int, "seconds": float}}`."""
        return {name: {"flops": self.flops[name], "seconds": self.seconds[name]} for name in COST_CATEGORIES}

    def take(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        """Become what `to_dict` gave, in place (resume)."""
        fresh = CostAccounting()
        for cost_category, entry in entries.items():
            fresh.add_cost(cost_category, flops=int(entry["flops"]), seconds=float(entry["seconds"]))
        self.flops, self.seconds = fresh.flops, fresh.seconds

    def save(self, path: Path) -> None:
        """Write `compute_cost.json`, whole or not at all."""
        write_json(path, self.to_dict())
