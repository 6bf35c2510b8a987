"""Stage `smoke`: does this GPU answer, how fast is it at best, and is what will be measured right on it?

    machine            compilers, memory of the host, the driver
    peak               best 8,192-cube in bf16, best copy on the GPU, copies from and to pinned host memory
    check-<backend>    out, dq, dk, dv under six masks and two head dims, against the specification in fp32
    guard              the kernels run on the GPU that holds their inputs, not on the current one; wants two GPUs
    compile, offload   a step of a small model compiled, and offloaded, against the same step eager and kept
    gpu-tests         tests that need a GPU and little time: a mesh of one, the ring's reference, offloading

Errors are shares of the largest value. Nothing here is a gate: a backend that is off is reported, and what follows
shows it again ("skipped").
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.child import machine
from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.gpu.stages import tests as gpu_tests
from benchmarks.harness.implementations import Implementation
from benchmarks.harness.measure import copy_rate, matmul_rate, reason_of
from benchmarks.kernels import attention
from benchmarks.kernels.attention_implementations import brine
from benchmarks.kernels.masks import KINDS
from brine.model.config import ModelConfig
from brine.training.parallel.distributed import World

BACKENDS = ("auto", "triton", "gluon", "flex", "flash")
DIMS = (64, 128)
NUM_TOKENS = 1500
SMALL = ModelConfig(
    vocab_size=4096, dim=512, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=128, mlp_dim=1536, window=256,
    global_every=2,
)  # fmt: skip
# one block: a compiler of CPU code takes its time
TOY = replace(SMALL, vocab_size=512, dim=64, num_layers=1, head_dim=32, num_heads=2, num_kv_heads=1, mlp_dim=128)


def items(toy: bool) -> list[SuiteItem]:
    """What is done, in this order."""
    checks = [SuiteItem(f"check-{name}", 90) for name in BACKENDS]
    steps = [SuiteItem(name, 180) for name in ("compile", "offload")]
    return [
        SuiteItem("machine", 30),
        SuiteItem("peak", 60),
        *checks,
        *steps,
        SuiteItem("guard", 30),
        SuiteItem("gpu-tests", 120),
    ]


def run(item: SuiteItem, context: StageContext) -> None:
    """Do one item."""
    name, _, backend = item.name.partition("-")
    if name == "check":
        check(backend, context)
    elif name == "gpu":
        gpu_tests.run(item, context)
    elif name == "machine":
        context.record(**machine())
    else:
        {"peak": peak, "compile": compiled, "offload": offloaded, "guard": guard}[name](context)


def peak(context: StageContext) -> None:
    """The rates that everything else is compared with."""
    size, device = (256, context.device) if context.toy else (8192, context.device)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        context.record(
            f"matmul-{name}",
            size=size,
            flops_per_s=matmul_rate(device, dtype, size=size, budget_s=1.0 - 0.9 * context.toy),
        )
    context.record("copy", bytes_per_s=copy_rate(device, size=2**20 if context.toy else 2**30))
    if device == "cuda":
        on_gpu = torch.empty(2**28, dtype=torch.uint8, device=device)
        start = time.perf_counter()
        pinned = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        pin_s = time.perf_counter() - start
        rates = {}
        for way, target, source in (("from_host", on_gpu, pinned), ("to_host", pinned, on_gpu)):
            target.copy_(source, non_blocking=True)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(8):
                target.copy_(source, non_blocking=True)
            end.record()
            torch.cuda.synchronize()
            rates[f"{way}_bytes_per_s"] = 8 * 2**28 / (begin.elapsed_time(end) / 1e3)
        context.record("pinned", pin_bytes_per_s=2**28 / pin_s, **rates)


def check(backend: str, context: StageContext) -> None:
    """A backend on this device against the specification, mask by mask, without those that killed a process before."""
    if context.without and context.left_s() < context.item.timeout_s:
        context.record(skipped="the time that is left is for the other items, should another mask hang")
        return
    dtype = "fp32" if context.device == "cpu" else "bf16"
    tokens, dims = (150, (16,)) if context.toy else (NUM_TOKENS, DIMS)
    failed = []
    for kind in KINDS:
        for dim in dims:
            name = f"{kind}-D{dim}"
            # the backend's name too: another one may be right where this one kills
            implementation_name = f"{backend} {name}"
            if implementation_name in context.without:
                continue
            context.on_work(implementation_name)
            try:
                problem = attention.make_problem(
                    attention.AttentionCase(kind, tokens, (4, 2), dim, dtype), context.device, backend=backend
                )
                wide = {part: getattr(problem, part).float() for part in ("q", "k", "v")}
                grad = None if problem.grad is None else problem.grad.float()
                truth = replace(problem, **wide, grad=grad, backend="reference")
                off = errors(brine(problem), brine(truth))
            except (ValueError, NotImplementedError) as error:
                # what a backend says of a call that it does not serve
                context.record(name, skipped=reason_of(error))
                continue
            except Exception as error:
                # of any kind: Triton has its own, and the other masks are to be tried
                failed.append(name)
                context.record(name, error=reason_of(error), right=False)
                if context.device == "cuda":
                    # raises where the GPU answers no longer
                    torch.cuda.synchronize()
                continue
            context.record(
                name, dtype=dtype, errors=off, right=all(x <= attention.TOLERANCE[dtype] for x in off.values())
            )
    if failed:
        raise RuntimeError(f"{backend} raised at {', '.join(failed)}")


def errors(ours: Implementation, truth: Implementation) -> dict[str, float]:
    """Largest error of the result and each gradient, as a share of the largest value; NaN stays NaN."""
    found = []
    for built in (ours, truth):
        out = built.forward()
        grads = torch.autograd.grad(out, built.leaves, built.grad) if built.leaves else ()
        found.append([x.detach().double() for x in (out, *grads)])
    names = ("out", "dq", "dk", "dv")
    return {
        name: float((mine - true).abs().max() / true.abs().max())
        for name, mine, true in zip(names, *found, strict=False)
    }


def compiled(context: StageContext) -> None:
    """Two steps of a small model, its blocks compiled, against the same steps eager."""
    if context.device == "cpu":
        context.record(skipped="for a GPU; a processor's compiler takes a minute, and the tests of training have it")
        return
    _compare(context, "eager", "compiled", {"compiled": True})


def offloaded(context: StageContext) -> None:
    """Two steps with activations offloaded to the host, against the same steps with all kept."""
    _compare(
        context,
        "kept",
        "offloaded",
        {"activation_checkpointing": "offload", "ac_group_size": 2, "mlp_tile_tokens": 128},
    )


def _compare(context: StageContext, plain: str, other: str, changes: dict[str, Any]) -> None:
    from benchmarks.training.steps import TrainStepRunner, random_batch
    from brine.planner.memory import RunSettings

    base = RunSettings(
        TOY if context.toy else SMALL, 256 if context.toy else 4096, device=context.device,
        dtype="float32" if context.device == "cpu" else "bfloat16",
    )  # fmt: skip
    found = {}
    for name, case in ((plain, base), (other, replace(base, **changes))):
        torch.manual_seed(0)
        trainer, batch = TrainStepRunner(case, world=World()), random_batch(case, document_tokens=case.seq_len // 3)
        start = time.perf_counter()
        steps = [trainer.step(batch).read() for _ in range(2)]
        found[name] = [step.step_sums.loss for step in steps], [step.grad_norm for step in steps]
        context.record(name, losses=found[name][0], grad_norms=found[name][1], two_steps_s=time.perf_counter() - start)
    worst = max(abs(a / b - 1) for one, two in zip(*found.values(), strict=True) for a, b in zip(one, two, strict=True))
    context.record("difference", relative=worst, right=worst < (1e-4 if context.device == "cpu" else 1e-3))


def guard(context: StageContext) -> None:
    """Inputs on the second GPU while the first is current."""
    if context.device != "cuda" or torch.cuda.device_count() < 2:
        context.record(skipped="wants two GPUs")
        return
    with torch.cuda.device(0):
        problem = attention.make_problem(
            attention.AttentionCase("causal", 1500, (4, 2), 64, "bf16"), "cuda:1", backend="triton"
        )
        wide = {part: getattr(problem, part).float() for part in ("q", "k", "v", "grad")}
        context.record(errors=errors(brine(problem), brine(replace(problem, **wide, backend="reference"))))
