"""A make-believe accelerator: it computes on the CPU, and is as strict as a card about where tensors lie.

    register()                                   once a process, before the first backward pass
    x = torch.zeros(3, device="standin")
    x + torch.ones(3)                            RuntimeError, in the words that CUDA has for it

`StandIn` (tensor.py) wraps a CPU tensor and says that it lies on the device "standin", torch's privateuse1. What is
asked of it comes to `__torch_dispatch__`: every tensor of an operation must lie there (but what CUDA lets pass: numbers
of no dimensions where it is pointwise, indices), the operation runs on what is wrapped, and its results are wrapped
again. So shapes, dtypes, gradients and bits are the CPU's, and code that mixes devices fails where it would fail on a
card. The body of a custom operation gets the stand-in's tensors, as it would get a card's: its own mistakes show too.

Where a card would make the host wait, `count_waits` (waits.py) counts it, with the line of the project that asked:

    with count_waits() as waits:
        step()
    waits.total, waits.reads, waits.uploads, waits.lines

A read is whatever brings a number to the host or needs one there: `.item()`, `.tolist()`, `.cpu()`, a shape that hangs
on values (`nonzero`, boolean masks, `unique`). An upload is a copy to the device that was not asked not to wait, a list
or a NumPy array made a tensor there included. `non_blocking=True` is believed to the device, and to the host where the
memory is pinned. Both kinds are what `torch.cuda.set_sync_debug_mode` warns of.

What it does not do: `torch.compile`, Triton, streams, memory that runs out, more than one device, operations that give
a tensor another shape in place, copies that arrive late. Random numbers come from a generator of its own; a CPU
generator is refused, as on a card. `torch.Generator`, `torch.empty` and pinning are replaced for the whole process
(register.py), and torch's autograd knows only devices that were there at its first backward pass, so these tests have a
process of their own (conftest.py).
"""

from tests.standin.stand_in.names import NAME
from tests.standin.stand_in.register import register
from tests.standin.stand_in.tensor import StandIn
from tests.standin.stand_in.waits import Waits, count_waits

__all__ = ["NAME", "StandIn", "Waits", "count_waits", "register"]
