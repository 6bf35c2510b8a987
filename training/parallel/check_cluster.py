"""Checks several GPUs in a minute: versions, collectives, link speeds, ring attention, FSDP2. One line a check, PASS or
FAIL.

    torchrun --nproc-per-node 8 -m brine check-cluster --json check.json

Ring attention and the sharded model are compared with one rank: on GPUs errors against float64 may be twice those of
one rank, on CPUs (gloo) they agree to 1e-10 in float64. A check that hangs is ended after `--timeout` seconds by a
thread that prints where each rank was last seen. Rehearsed on gloo; not yet run on GPUs.
"""

import json
import os
import platform
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from brine.training.parallel.cluster_numerics import ring_errors, sharding_errors
from brine.training.parallel.distributed import RankFailedError, World, destroy_distributed, init_distributed
from brine.training.parallel.parallelize import init_parallel_groups

SIZES = {"cuda": (2**16, 2**22, 2**26), "cpu": (2**12, 2**18)}
REPEATS = 5
COUNTED = 32
"""Ranks that put more than zeros into a sum."""
EXIT_HUNG = 3
PROG = "torchrun --nproc-per-node N -m brine check-cluster"


@dataclass(frozen=True)
class ClusterCheckOptions:
    """Checks the ranks that torchrun starts: collectives, link speeds, ring attention and FSDP2 against one rank. One
    line a check, PASS or FAIL; exit code 0 where all passed, 1 where one failed, 2 for a mistake in the command, 3
    where one did not end in time.

    8 GPUs: torchrun --nproc-per-node 8 -m brine check-cluster --json check.json
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cuda uses NCCL, cpu gloo; auto: cuda where there is one."""
    timeout: Annotated[float, tyro.conf.arg(metavar="S")] = 60.0
    """Seconds for each check; then the missing rank is named."""
    no_links: bool = False
    """Leave the speeds out: W (W - 1) pairs take their time."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write what was found here, too (rank 0)."""

    def check(self) -> None:
        """Raises ValueError for a time or a file that cannot be used."""
        if not 0 < self.timeout < 1e6:
            raise ValueError(f"--timeout {self.timeout:g}: give seconds, more than 0")
        if self.json is not None and os.environ.get("RANK", "0") == "0":
            try:
                self.json.open("a").close()
            except OSError as error:
                raise ValueError(
                    f"--json {self.json} cannot be written ({error.strerror}): name another file"
                ) from None


class Watchdog:
    """Ends the process when a check does not end in time, and prints where each rank is."""

    def __init__(self, world: World, timeout_s: float):
        self.world, self.timeout_s = world, timeout_s
        self.what, self.deadline = "starting", time.monotonic() + timeout_s
        threading.Thread(target=self._watch, daemon=True).start()

    def at(self, what: str) -> None:
        """The next check begins."""
        self.world.mark(what)
        self.what, self.deadline = what, time.monotonic() + self.timeout_s

    def _watch(self) -> None:
        while time.monotonic() < self.deadline:
            time.sleep(0.2)
        last_seen = self.world.last_seen() if self.world.store is not None else "alone"
        _complain(
            f"FAIL  {self.what}: did not end in {self.timeout_s:.0f} s on rank {self.world.rank}. {last_seen}. "
            "Where one rank is missing check its GPU and its log; where all wait, the network (NCCL_DEBUG=INFO)"
        )
        os._exit(EXIT_HUNG)


def describe(world: World, device: str) -> dict[str, Any]:
    """Who this rank is: host, device, versions."""
    found = {
        "rank": world.rank, "host": socket.gethostname(), "device": platform.machine(), "torch": torch.__version__,
        "backend": "gloo",
    }  # fmt: skip
    if device == "cuda":
        number = torch.cuda.current_device()
        gpu = torch.cuda.get_device_properties(number)
        found |= {
            "device": f"cuda:{number} {gpu.name}", "memory_gib": round(gpu.total_memory / 2**30, 1),
            "bus": f"{getattr(gpu, 'pci_bus_id', 0):02x}", "driver": _driver(), "cuda": torch.version.cuda,
            "backend": "nccl " + ".".join(map(str, torch.cuda.nccl.version())),
        }  # fmt: skip
    return found


def _driver() -> str | None:
    try:
        # "NVRM version: NVIDIA UNIX ... Kernel Module  570.1.2  ..."
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def collectives(world: World, device: str) -> str | None:
    """What is wrong with sums and exchanges, or None."""
    size, rank = world.size, world.rank
    # whatever is wrong here, the other ranks continue with the next check
    troubles = []
    for dtype in (torch.float32, torch.bfloat16):
        # whole numbers whose sums stay below 256: exact in bfloat16, in any order; of many ranks the first 32 give them
        pattern = torch.arange(64, device=device) % 4
        every = torch.stack([(pattern + each % 2) * (each < COUNTED) for each in range(size)]).to(dtype)
        sent = every[rank].clone()
        total = sent.clone()
        dist.all_reduce(total)
        gathered = torch.empty_like(every)
        dist.all_gather_into_tensor(gathered.view(-1), sent)
        parts = sent.repeat(size, 1) + (torch.arange(size, device=device) % 2 * (rank < COUNTED)).to(dtype)[:, None]
        scattered, received = torch.empty_like(sent), torch.empty_like(sent)
        dist.reduce_scatter_tensor(scattered, parts.view(-1))
        ends = (dist.isend, sent, (rank + 1) % size), (dist.irecv, received, (rank - 1) % size)
        for work in dist.batch_isend_irecv([dist.P2POp(*end) for end in ends]):
            work.wait()
        expected = every.double().sum(0)
        for name, found, right in (
            ("all_reduce", total, expected),
            ("all_gather", gathered, every),
            ("reduce_scatter", scattered, expected + min(size, COUNTED) * (rank % 2)),
            ("isend and irecv", received, every[(rank - 1) % size]),
        ):
            if not torch.equal(found.double(), right.double()):
                troubles.append(f"{name} of {str(dtype).removeprefix('torch.')} gave wrong numbers")
    return ", ".join(troubles) or None


def link_speeds(world: World, device: str, watch: Watchdog) -> dict[str, Any]:
    """GB/s between each ordered pair, and of all_reduce between all; the same on all ranks."""
    pairs: dict[str, dict[str, float]] = {}
    bus: dict[str, float] = {}

    def send(data: Tensor, source: int, target: int) -> None:
        if world.rank == source:
            dist.send(data, target)
        elif world.rank == target:
            dist.recv(data, source)

    for source, target in permutations(range(world.size), 2):
        watch.at(f"measuring the link from rank {source} to rank {target}")
        for num_bytes in SIZES[device]:
            data = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
            # the receiver has it when it has come
            seconds = world.gather(_timed(device, partial(send, data, source, target)))[target]
            pairs.setdefault(f"{source}->{target}", {})[str(num_bytes)] = num_bytes / seconds / 1e9
    watch.at("measuring all_reduce")
    for num_bytes in SIZES[device]:
        summed = torch.zeros(num_bytes // 4, device=device)
        seconds = max(world.gather(_timed(device, partial(dist.all_reduce, summed))))
        bus[str(num_bytes)] = 2 * (world.size - 1) / world.size * num_bytes / seconds / 1e9
    return {"pairs_gb_per_s": pairs, "all_reduce_bus_gb_per_s": bus}


def _timed(device: str, work: Callable[[], Any]) -> float:
    """Median seconds; all ranks begin together."""
    found = []
    for _ in range(REPEATS + 1):
        dist.barrier()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    # the first one connects
    return sorted(found[1:])[REPEATS // 2]


def run(world: World, device: str, watch: Watchdog, *, links: bool) -> dict[str, Any]:
    """All checks, as the JSON file has them; every rank gets the same report, rank 0 prints it."""
    watch.at("exchanging rank information")
    ranks, checks, speeds = world.gather(describe(world, device)), [], {}
    for each in ranks:
        driver = f", driver {each['driver']}, CUDA {each['cuda']}" if "driver" in each else ""
        _print(world, "rank {rank}: {host}, {device}, {backend}, torch {torch}".format(**each) + driver)

    def alike() -> str | None:
        if len({(each["torch"], each["backend"], each.get("driver")) for each in ranks}) > 1:
            return "ranks have different versions of torch, NCCL or the driver"
        if device == "cuda" and len({(each["host"], each["device"]) for each in ranks}) < world.size:
            return "two ranks share a GPU: start as many as there are GPUs"
        return None

    def check(name: str, find: Callable[[], str | None]) -> None:
        watch.at(f"checking {name}")
        start = time.perf_counter()
        try:
            trouble = find()
        except RankFailedError:
            raise
        except Exception as error:
            trouble = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        troubles = {rank: each for rank, each in enumerate(world.gather(trouble)) if each}
        seconds = time.perf_counter() - start
        reason = "; ".join(f"rank {rank}: {each}" for rank, each in troubles.items())
        checks.append({"name": name, "passed": not troubles, "seconds": round(seconds, 2), "reason": reason})
        _print(world, f"{'FAIL' if troubles else 'PASS'}  {name:<44}{seconds:>6.1f} s{'  ' + reason if reason else ''}")

    check("ranks have the same versions" + " and a GPU each" * (device == "cuda"), alike)
    check("collectives give the right numbers", lambda: collectives(world, device))
    if links:
        speeds = link_speeds(world, device, watch)
        _print(world, "\n".join(table(speeds, world.size)))
    whole = init_parallel_groups(world, context_parallel=world.size, device=device)
    check("ring attention matches a single rank", lambda: ring_errors(whole, device))
    sharded = init_parallel_groups(world, dp_shard=world.size, device=device)
    check("sharded parameters match unsharded ones", lambda: sharding_errors(sharded, device))
    passed = bool(checks) and all(check["passed"] for check in checks)
    return {"passed": passed, "ranks": ranks, "checks": checks, "links": speeds}


def table(links: dict[str, Any], size: int) -> list[str]:
    """Speeds of the largest message between ranks, and of all_reduce by size."""
    pairs, bus = links["pairs_gb_per_s"], links["all_reduce_bus_gb_per_s"]
    largest = max(map(int, bus))
    lines = [f"GB/s from rank (down) to rank (across), {largest / 2**20:g} MiB:"]
    lines.append("      " + "".join(f"{target:>8}" for target in range(size)))
    for source in range(size):
        speeds = [pairs.get(f"{source}->{target}", {}).get(str(largest)) for target in range(size)]
        lines.append(f"{source:>6}" + "".join(f"{'-':>8}" if speed is None else f"{speed:>8.2f}" for speed in speeds))
    speeds = [f"{int(num_bytes) / 2**20:g} MiB {speed:.2f}" for num_bytes, speed in bus.items()]
    return [*lines, f"all_reduce, bus GB/s: {', '.join(speeds)}"]


def _print(world: World, line: str) -> None:
    if world.is_main:
        print(line, flush=True)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = tyro.cli(ClusterCheckOptions, args=argv, prog=PROG, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        options.check()
        device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if device == "cuda" and rank >= gpus:
            raise ValueError(f"rank {rank} of this machine has no GPU: start at most {gpus} ranks here")
    except ValueError as error:
        _complain(f"error: {error}")
        return 2
    try:
        # the watchdog reports before a collective times out, and NCCL's own watchdog ends the process
        world = init_distributed(device=device, timeout_s=2 * options.timeout)
        if world.size == 1:
            _complain(f"error: needs at least two ranks: {PROG.replace('node N', 'node 2')}")
            return 2
        if device == "cpu":
            torch.set_num_threads(1)
        # torch 2.13 has new names for collectives, which 2.11 does not know
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        report = run(world, device, Watchdog(world, options.timeout), links=not options.no_links)
        _print(world, json.dumps({"passed": report["passed"], "ranks": world.size, "checks": len(report["checks"])}))
        if options.json is not None and world.is_main:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
        return 0 if report["passed"] else 1
    except (RankFailedError, ValueError) as error:
        _complain(f"FAIL  {error}")
        return 1
    finally:
        destroy_distributed()


if __name__ == "__main__":
    sys.exit(main())
