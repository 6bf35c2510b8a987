"""A run on paper, before anything runs: will it fit, how long is a step, what is the longest row, which mesh is best.

    python -m training.planner long_1m --gpus 1 --gpu h200
    python -m training.planner long_1m --gpus 64 --gpu h200 --row-tokens 10000000 --context 64 --shard 64

Every mesh (ranks that share rows, ranks that share parameters: independent, see `training.parallel`), every way of
keeping activations and a few MLP tiles are tried; of those that fit into device and host memory the fastest is shown,
by `training.plan_memory` and `training.plan_time`. A setting given on the command line is held, the others are
searched, and a recipe's fields are overridden as with train.py. Nothing is allocated, and it takes a few seconds.

It is an estimate: byte counts follow the code, some are tested to be exact, and peak memory was held against resident
memory on a CPU (`benchmarks/planner.py`). Neither memory nor time has been validated on any GPU, and efficiencies are
assumptions (`training.gpus`). What it leaves out is told at the top of those files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data.closed_pipe import until_closed
from model.device import has_bfloat16
from training.config import CHECKPOINTING, TrainConfig
from training.console import count, duration
from training.gpus import GPUS, NAMES, Device, this_cpu
from training.plan_memory import Case, Memory, longest, memory, num_parameters
from training.plan_time import StepTime, step_time
from training.runtime import find_compiler

TILES = (0, 4096, 16384)
"""MLP tiles that are tried."""
SEARCHED = ("context", "shard", "checkpointing", "checkpoint_layers", "mlp_tile")
"""Settings that are searched unless they are given."""
MIN_ROWS = 16
"""Least tokens of a row on one rank."""
GIB = 2**30
NOTE = "estimate, not validated on this device; efficiencies are assumed"


class PlanError(ValueError):
    """Nothing fits, or the request contradicts itself; the message says what would serve."""


@dataclass(frozen=True)
class Plan:
    """One way to run, with what it comes to."""

    case: Case
    memory: Memory
    time: StepTime
    num_micro: int
    device: Device

    @property
    def fits(self) -> bool:
        """Do the peak and what waits in host memory fit into what may be used of both?"""
        return fits(self.memory, self.device)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        case, time = self.case, self.time
        return {
            "note": NOTE,
            "device": self.device.name,
            "source": self.device.source,
            "gpus": case.ranks,
            "row_tokens": case.row_tokens,
            "micro_rows": case.micro_rows,
            "num_micro": self.num_micro,
            "context": case.context,
            "shard": case.shard,
            "checkpointing": case.checkpointing,
            "checkpoint_layers": case.checkpoint_layers,
            "mlp_tile": case.mlp_tile,
            "parameters": num_parameters(case.model),
            "memory_bytes": {name: round(size) for name, size in self.memory.terms.items()},
            "peak_bytes": round(self.memory.peak_bytes),
            "usable_bytes": round(self.device.usable_bytes),
            "usable_host_bytes": round(self.device.usable_host_bytes),
            "host_bytes": {name: round(size) for name, size in self.memory.host.items()},
            "step_s": time.total_s,
            "time_s": time.terms,
            "tokens_per_s": time.tokens / time.total_s,
            "mfu": time.mfu(self.device),
            "limit": time.limit,
        }


def fits(found: Memory, device: Device) -> bool:
    """Is there room for the peak on the device, and for the rest on its host?"""
    return found.peak_bytes <= device.usable_bytes and sum(found.host.values()) <= device.usable_host_bytes


def plan_of(case: Case, train: TrainConfig, device: Device) -> Plan:
    """What one case comes to on a device. Raises ValueError where the rows of a step cannot be shared so."""
    rows = train.micro_rows_on(case.ranks // case.context)
    num_micro = train.rows_per_step * case.context // (case.ranks * rows)
    case = replace(case, micro_rows=rows, optimizer=train.optimizer, accumulated=num_micro > 1)
    return Plan(case, memory(case), step_time(case, device, num_micro=num_micro), num_micro, device)


def cases(base: Case, held: dict) -> Iterator[Case]:
    """Every mesh and setting that agrees with `held`, simplest first."""
    ranks = [size for size in range(1, base.ranks + 1) if base.ranks % size == 0]
    modes = CHECKPOINTING if base.device == "cuda" else CHECKPOINTING[:3]
    for context in [held["context"]] if "context" in held else ranks:
        if context > 1 and base.row_tokens < context * MIN_ROWS:
            continue
        for shard in [held["shard"]] if "shard" in held else ranks:
            for mode in [held["checkpointing"]] if "checkpointing" in held else modes:
                for layers in [held["checkpoint_layers"]] if "checkpoint_layers" in held else layers_of(base, mode):
                    for tile in [held["mlp_tile"]] if "mlp_tile" in held else TILES:
                        if not tile or "mlp_tile" in held or tile < base.row_tokens // context:
                            yield replace(
                                base, context=context, shard=shard, checkpointing=mode, checkpoint_layers=layers,
                                mlp_tile=tile,
                            )  # fmt: skip


def layers_of(base: Case, mode: str) -> list[int]:
    """Numbers of local layers that may keep one input between them: one, and all between two global ones, or half."""
    group = min(base.model.global_every, base.model.num_layers) if mode != "none" else 1
    return sorted({1, group // 2, group - 1} - {0})


def search(base: Case, train: TrainConfig, device: Device, held: dict) -> tuple[Plan, list[Plan]]:
    """(the fastest plan that fits, all plans). Raises PlanError where none fits, or rows cannot be shared."""
    plans, reason = [], ""
    for case in cases(base, held):
        try:
            plans.append(plan_of(case, train, device))
        except ValueError as error:
            reason = str(error)
    if not plans:
        raise PlanError(
            f"{reason or f'rows of {base.row_tokens} tokens are too short for this mesh'}: choose --rows-per-step or "
            "--context so that ranks / context divides the rows of a step"
        )
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise PlanError(_remedy(plans, train, device, held))
    return min(fitting, key=lambda plan: plan.time.total_s), plans


def longest_row(base: Case, train: TrainConfig, device: Device, held: dict) -> int:
    """Most tokens of a row for which some mesh fits; one row at a time on each group of ranks."""

    def any_fits(case: Case) -> bool:
        return any(fits(memory(each), device) for each in cases(case, held))

    return longest(replace(base, micro_rows=1, optimizer=train.optimizer), any_fits)


def _remedy(plans: Sequence[Plan], train: TrainConfig, device: Device, held: dict) -> str:
    """What to say where nothing fits: how much is missing, what takes most, and what would serve."""
    nearest = min(plans, key=lambda plan: max(_fill(plan)))
    case = nearest.case
    advice = []
    if held and (free := [plan for plan in _all_plans(case, train, device) if plan.fits]):
        advice.append(f"{in_options(min(free, key=lambda plan: plan.time.total_s).case)} fits")
    most = longest_row(case, train, device, held)
    advice.append(
        f"rows of {most:,} tokens fit" if most else "no row fits, as weights and their gradients are too large"
    )
    ranks = case.ranks
    while ranks < 1024 and not advice[0].startswith("--"):
        ranks *= 2
        more = replace(train, rows_per_step=ranks, micro_rows=1)
        if any(plan.fits for plan in _all_plans(replace(case, ranks=ranks), more, device)):
            advice.append(f"{ranks} GPUs fit it")
            break
    on_device, on_host = _fill(nearest)
    where, terms, usable = f"on each of {case.ranks} {device.name}", nearest.memory.terms, device.usable_bytes
    if on_host > on_device:
        where, terms, usable = f"of host memory for each of {case.ranks}", nearest.memory.host, device.usable_host_bytes
    worst = max(terms, key=terms.get)
    return (
        f"does not fit: {sum(terms.values()) / GIB:,.1f} GiB at the least {where}, which have {usable / GIB:,.1f} to "
        f"use (most: {worst}, {terms[worst] / GIB:,.1f} GiB); " + "; ".join(advice)
    )


def _fill(plan: Plan) -> tuple[float, float]:
    """Shares of what may be used of the device and of its host."""
    device, host = plan.device, sum(plan.memory.host.values())
    return plan.memory.peak_bytes / device.usable_bytes, host / device.usable_host_bytes


def in_options(case: Case) -> str:
    """What was searched, as the command line takes it."""
    shared = f"--checkpoint-layers {case.checkpoint_layers} " if case.checkpoint_layers > 1 else ""
    return (
        f"--context {case.context} --shard {case.shard} --checkpointing {case.checkpointing} {shared}"
        f"--mlp-tile {case.mlp_tile}"
    )


def _all_plans(base: Case, train: TrainConfig, device: Device) -> Iterator[Plan]:
    for case in cases(base, {}):
        try:
            yield plan_of(case, train, device)
        except ValueError:
            continue


def in_words(best: Plan, longest_tokens: int, name: str) -> str:
    """The plan as an aligned table."""
    case, time, device = best.case, best.time, best.device
    peak, host = best.memory.peak_bytes, sum(best.memory.host.values())
    lines = [
        f"{name} on {case.ranks} x {device.name}: {NOTE}",
        f"  model     {count(num_parameters(case.model))} parameters, {case.model.num_layers} layers, "
        f"{case.model.num_global_layers} of them global",
        f"  rows      {case.row_tokens:,} tokens, {best.num_micro} x {case.micro_rows} a step on each of "
        f"{case.ranks // case.context} groups, {case.dtype}, "
        f"blocks {'compiled' if case.compiled else 'not compiled'}",
        f"  mesh      {in_options(case)}",
        "",
        f"  memory of one rank, at its fullest in: {best.memory.worst}",
    ]
    for term, size in sorted(best.memory.terms.items(), key=lambda item: -item[1]):
        lines.append(f"    {term:<44}{size / GIB:>10.3f} GiB {100 * size / peak:>5.1f} %")
    share = f"{100 * peak / device.usable_bytes:.0f} % of {device.usable_bytes / GIB:.1f}"
    lines.append(f"    {'peak':<44}{peak / GIB:>10.3f} GiB   {share}")
    lines += [f"    {'on the host, ' + term:<44}{size / GIB:>10.3f} GiB" for term, size in best.memory.host.items()]
    share = f"{100 * host / device.usable_host_bytes:.0f} % of {device.usable_host_bytes / GIB:.1f}"
    lines.append(f"    {'on the host':<44}{host / GIB:>10.3f} GiB   {share}")
    lines += ["", "  time of one step"]
    for term, seconds in sorted(time.terms.items(), key=lambda item: -item[1]):
        lines.append(f"    {term:<44}{seconds:>10.3f} s   {100 * seconds / time.total_s:>5.1f} %")
    lines.append(f"    {'step':<44}{time.total_s:>10.3f} s   {duration(time.total_s)}")
    lines += [
        "",
        f"  {count(time.tokens / time.total_s)} tokens/s, MFU {100 * time.mfu(device):.1f} % of the data sheet's "
        f"{device.matmul_flops / 1e12:,.1f} TFLOP/s (unmasked area, nothing done again counted)",
        f"  limited by {time.limit}; longest row that fits on this many: {longest_tokens:,} tokens",
        f"  {device.source}",
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        prog="python -m training.planner",
        allow_abbrev=False,
        description="Memory, time and the best mesh of a recipe, before anything runs. Settings that are not given are "
        "searched; those given are held. Fields of the recipe are overridden as with train.py.",
        epilog="example: python -m training.planner long_1m --gpus 8 --gpu h200 --row-tokens 4194304 "
        "--large.model.num-layers 36",
    )
    options.add_argument("recipe", help="name of a recipe, as train.py takes it")
    options.add_argument("--gpus", type=int, required=True, metavar="N", help="ranks, 1 to 1024, one to a device")
    options.add_argument("--gpu", required=True, choices=NAMES, help="kind of device; cpu: this machine, timed")
    options.add_argument("--arm", choices=("large", "small"), default="large", help="which model (default: large)")
    options.add_argument("--row-tokens", type=int, metavar="T", help="tokens of a row (default: the recipe's)")
    options.add_argument("--rows-per-step", type=int, metavar="R", help="rows of a step (default: the recipe's, or one "
                         "for each group of ranks where they are fewer)")  # fmt: skip
    options.add_argument("--context", type=int, metavar="C", help="neighbouring ranks that share rows")
    options.add_argument("--shard", type=int, metavar="S", help="neighbouring ranks that share parameters")
    options.add_argument("--checkpointing", choices=CHECKPOINTING, help="what blocks compute again")
    options.add_argument("--checkpoint-layers", type=int, metavar="L",
                         help="neighbouring local layers that keep one input")  # fmt: skip
    options.add_argument("--host-gib", type=float, metavar="G", help="host memory for each device (default: 2 TB to 8)")
    options.add_argument("--mlp-tile", type=int, metavar="M", help="tokens that an MLP takes at a time; 0: all")
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return options


def request(args: argparse.Namespace, recipe) -> tuple[Case, TrainConfig, Device, dict]:
    """(case, training, device, held settings) of a command line. Raises PlanError for what cannot be."""
    recipe = recipe.resolved(recipe.corpus.vocab_size)
    train: TrainConfig = getattr(recipe, args.arm)
    if not 1 <= args.gpus <= 1024:
        raise PlanError(f"--gpus {args.gpus}: give 1 to 1024")
    held = {name: getattr(args, name) for name in SEARCHED}
    held = {name: value for name, value in held.items() if value is not None}
    for name in ("context", "shard"):
        if name in held and (held[name] < 1 or args.gpus % held[name]):
            raise PlanError(f"--{name} {held[name]} does not divide --gpus {args.gpus}: give a divisor of it")
    if held.get("checkpoint_layers", 1) < 1:
        raise PlanError(f"--checkpoint-layers {held['checkpoint_layers']}: give 1, or the layers that keep one input")
    if args.host_gib is not None and args.host_gib <= 0:
        raise PlanError(f"--host-gib {args.host_gib}: give the host's memory for each device")
    if held.get("mlp_tile", 0) < 0:
        raise PlanError(f"--mlp-tile {held['mlp_tile']}: give a number of tokens, or 0 for whole rows")
    tokens = args.row_tokens if args.row_tokens is not None else recipe.rows.row_tokens
    if tokens < MIN_ROWS:
        raise PlanError(f"--row-tokens {tokens} is too short for a row: give {MIN_ROWS} or more")
    rows = args.rows_per_step if args.rows_per_step is not None else train.rows_per_step
    if rows < 1:
        raise PlanError(f"--rows-per-step {rows}: give 1 or more")
    train = replace(train, rows_per_step=rows, micro_rows=min(train.micro_rows, rows)
                    if rows % min(train.micro_rows, rows) == 0 else 1)  # fmt: skip
    dtype = recipe.runtime.dtype
    if args.gpu == "cpu":
        dtype = ("bfloat16" if has_bfloat16("cpu")[0] else "float32") if dtype == "auto" else dtype
        device = this_cpu(dtype)
    else:
        dtype, device = "bfloat16" if dtype == "auto" else dtype, GPUS[args.gpu]
    if args.host_gib is not None:
        device = replace(device, host_memory_bytes=args.host_gib * GIB)
    if dtype == "float64":
        raise PlanError("runtime.dtype = 'float64' is for tests and is not planned: choose bfloat16 or float32")
    compiled = recipe.runtime.compile
    if compiled == "auto":
        compiled = args.gpu != "cpu" or find_compiler() is not None
    patches = tuple((name, most) for name, most in recipe.rows.media_budget.items() if most)
    case = Case(
        train.model, tokens, ranks=args.gpus, dtype=dtype, device=device.kind, compiled=compiled, patches=patches,
        attention_backend=recipe.runtime.attention_backend,
    )  # fmt: skip
    return case, train, device, held


@until_closed
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 a plan, 2 a mistake or nothing that fits."""
    # a command stands outside of the rooms: recipes import training, never the other way round
    from recipes import RECIPES

    args, fields = parser().parse_known_args(argv)
    try:
        if args.recipe not in RECIPES:
            raise PlanError(f"unknown recipe {args.recipe!r}: choose one of {', '.join(RECIPES)}")
        recipe = RECIPES[args.recipe]()
        if fields:
            # reading a recipe's fields takes the whole command-line library
            from recipes.launch import parse

            recipe = parse([args.recipe, *fields], prog="python -m training.planner").recipe
        base, train, device, held = request(args, recipe)
        best, _ = search(base, train, device, held)
        most = longest_row(base, train, device, held)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = best.to_dict() | {"longest_row_tokens": most}
    print(json.dumps(found) if args.json else in_words(best, most, args.recipe))
    return 0


if __name__ == "__main__":
    sys.exit(main())
