"""How much of the processor's time other processes took while something was timed."""

import os
import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessorTimes:
    """Seconds since the machine started, summed over its cores, and those of this process with the children that it has
    waited for."""

    total: float
    busy: float
    own: float


def processor_times() -> ProcessorTimes:
    """The times now, as Linux has them in /proc/stat."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    seconds = [each / os.sysconf("SC_CLK_TCK") for each in ticks]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # the fourth and fifth are idle, and waiting for a disk
    idle = seconds[3] + seconds[4]
    return ProcessorTimes(sum(seconds), sum(seconds) - idle, sum(each.ru_utime + each.ru_stime for each in used))


def cores_of_others(before: ProcessorTimes, after: ProcessorTimes) -> float:
    """Share of the processor's time, over all cores, that other processes took between two moments; 0 to 1."""
    total, busy, own = after.total - before.total, after.busy - before.busy, after.own - before.own
    return min(1.0, max(0.0, busy - own) / total) if total > 0 else 0.0
