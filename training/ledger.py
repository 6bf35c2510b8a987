"""Who pays for what: FLOPs and seconds, billed to one of five accounts.

SALT's claim is a saving, and a saving is only worth what its bill leaves out, so the ledger keeps apart what the
large model's own training costs (`student`) from everything its small helper costs: `teacher_forward` (soft labels
made during training), `scoring` (forward passes that select documents), `labelling` (soft labels made ahead) and
`teacher_training` (the small model's own training). Reports quote every saving with and without the teacher.

FLOPs are counted from shapes, so they are the same on every machine and part of a checkpoint. Seconds are rank 0's
wall-clock and are only records: nothing reads them back to decide anything. What a run lost to a kill is not billed
(it is done again and billed then); what a roll-back threw away is. Validation belongs to neither arm and is not
billed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from training.files import read_json, write_json

ACCOUNTS = ("student", "teacher_forward", "scoring", "labelling", "teacher_training")


class Ledger:
    """FLOPs (int, exact) and seconds (float) per account."""

    def __init__(self, entries: Mapping[str, Mapping[str, float]] | None = None):
        self.flops = dict.fromkeys(ACCOUNTS, 0)
        self.seconds = dict.fromkeys(ACCOUNTS, 0.0)
        for account, entry in (entries or {}).items():
            self.bill(account, flops=int(entry["flops"]), seconds=float(entry["seconds"]))

    def bill(self, account: str, *, flops: int = 0, seconds: float = 0.0) -> None:
        """Add to an account. Raises ValueError for an account that does not exist or a negative amount."""
        if account not in ACCOUNTS:
            raise ValueError(f"no account {account!r} in the ledger: choose one of {', '.join(ACCOUNTS)}")
        if flops < 0 or seconds < 0:
            raise ValueError(f"cannot bill {flops} FLOPs and {seconds} s to {account}: amounts only grow")
        self.flops[account] += int(flops)
        self.seconds[account] += seconds

    @contextmanager
    def timed(self, account: str, *, flops: int = 0) -> Iterator[None]:
        """Bill the time spent inside the `with` block, and `flops` with it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.bill(account, flops=flops, seconds=time.perf_counter() - start)

    def total_flops(self, *, without: tuple[str, ...] = ()) -> int:
        """FLOPs of all accounts but those named."""
        return sum(amount for account, amount in self.flops.items() if account not in without)

    def total_seconds(self, *, without: tuple[str, ...] = ()) -> float:
        """Seconds of all accounts but those named."""
        return sum(amount for account, amount in self.seconds.items() if account not in without)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{account: {"flops": int, "seconds": float}}`; `Ledger(...)` is the inverse."""
        return {name: {"flops": self.flops[name], "seconds": self.seconds[name]} for name in ACCOUNTS}

    def take(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        """Become what `to_dict` gave, in place (resume)."""
        fresh = Ledger(entries)
        self.flops, self.seconds = fresh.flops, fresh.seconds

    def __add__(self, other: Ledger) -> Ledger:
        total = Ledger(self.to_dict())
        for account in ACCOUNTS:
            total.bill(account, flops=other.flops[account], seconds=other.seconds[account])
        return total

    def save(self, path: Path) -> None:
        """Write `ledger.json`, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read `ledger.json`. Raises ValueError where there is none."""
        entries = read_json(path)
        if entries is None:
            raise ValueError(f"{path} is missing or not whole: run its stage again")
        return cls(entries)
