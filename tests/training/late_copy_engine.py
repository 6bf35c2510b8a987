"""A link between "device" and host on a CPU, whose copies happen as late as they may: when they are waited for."""

from collections import Counter

import torch
from torch import Tensor


class LateLink:
    """As `brine.training.parallel.offload.StreamCopyEngine`."""

    def __init__(self):
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.begun = 0
        """Copies that were done."""
        self.marks: list[int] = []
        """Copies queued before each mark."""
        self.log: list[str] = []
        self.pieces: Counter[int] = Counter()
        """Pieces of host memory that were made, by size."""
        self.addresses: set[int] = set()
        self.sent = self.fetched = 0
        """Bytes."""

    def take(self, num_bytes: int) -> Tensor:
        self.pieces[num_bytes] += 1
        # what nobody wrote is not a number
        piece = torch.full((num_bytes,), 255, dtype=torch.uint8)
        self.addresses.add(piece.data_ptr())
        return piece

    def wait_compute(self) -> None:
        self.log.append("wait_compute")

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.queue.append((target, source))
        out = target.data_ptr() in self.addresses
        self.sent += target.nbytes * out
        self.fetched += target.nbytes * (not out)
        self.log.append("out" if out else "back")

    def mark(self) -> int:
        self.marks.append(self.begun + len(self.queue))
        self.log.append("mark")
        return self.marks[-1]

    def wait(self, mark: int) -> None:
        self.log.append("wait")
        while self.begun < mark:
            target, source = self.queue.pop(0)
            target.copy_(source)
            self.begun += 1

    def synchronize(self, mark: int) -> None:
        """The host would wait in vain for copies that nothing has brought about."""
        self.log.append("synchronize")
        assert self.begun >= mark
