"""Compiles the specialised forward as its launcher would launch it on an sm_90 that is not here; JSON on stdout.

    python tests/kernels/attention/gluon_compile.py '[["forward", 128, [128, 2, true, false], {}], ..]'

A case is a kernel ("forward", "keys", "rows" or "fused"), a head dim, a shape and options.

In a process of its own: Triton's driver is replaced, and tests beside this one ask for the interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from brine.kernels.attention import Spans
from brine.kernels.attention.gluon import backward as gluon_backward
from brine.kernels.attention.gluon import backward_queries as gluon_backward_queries
from brine.kernels.attention.gluon import forward as gluon_forward
from brine.kernels.attention.gluon import fused as gluon_fused
from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import backward as triton_backward

WORDS = ("HGMMA", "USETMAXREG", "LDL", "STL", "UTMALDG", "RED", "ATOM", "ATOMG")


class Hopper:
    """What Triton asks a driver for in order to compile."""

    def get_current_target(self) -> GPUTarget:
        """An H100's."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first one."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """The default one."""
        return 0


class Compiling:
    """Stands in the kernel's place: what would be launched is compiled and kept."""

    def __init__(self, kernel):
        self.kernel, self.made = kernel, None

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.made = self.kernel.warmup(*args, grid=grid, **kwargs)

        return launch


def compiled(
    which: str, dim: int, shape: list, sink: bool = False, wide: bool = False, dtype: str = "bfloat16", group: int = 4
):
    """The kernel for one call over 200 tokens: "forward", or of the backward "keys", "rows" or "fused"."""
    q, k = (torch.zeros(1, 200, heads, dim, dtype=getattr(torch, dtype)) for heads in (2 * group, 2))
    spans = Spans.packed(torch.zeros(1, 200, dtype=torch.int32))
    kernels = {
        "forward": (gluon_forward, "span_attention_gluon_fwd_kernel"),
        "keys": (gluon_backward, "span_attention_gluon_bwd_keys_kernel"),
        "rows": (gluon_backward_queries, "span_attention_gluon_bwd_queries_kernel"),
        "fused": (gluon_fused, "span_attention_gluon_bwd_fused_kernel"),
    }
    wanted = Compiling(getattr(*kernels[which]))
    with (
        mock.patch.object(gluon_launch, "unsupported_reason", lambda *args, **kwargs: None),
        mock.patch.object(triton_backward, "span_attention_bwd_delta_kernel", mock.MagicMock()),
        ExitStack() as patches,
    ):
        for name, (module, kernel) in kernels.items():
            patches.enter_context(mock.patch.object(module, kernel, wanted if name == which else mock.MagicMock()))
        mask = spans.mask
        if which == "forward":
            sinks = torch.zeros(q.shape[2]) if sink else None
            request = AttentionRequest(mask, 0.1, sinks, partial=wide)
            gluon_launch.forward(q, k, k, request, shape=gluon_launch.ForwardTileConfig(*shape))
        else:
            lse = torch.zeros(1, q.shape[2], 200)
            gluon_launch.backward(
                q, q, k, k, q, lse, AttentionRequest(mask, 0.1, partial=wide), fused=which == "fused",
                **{f"{which}_shape": gluon_launch.BackwardTileConfig(*shape)},
            )  # fmt: skip
    return wanted.made


def facts(which: str, dim: int, shape: list, **options) -> dict:
    """Counts of what matters in the machine code, and the order of waits and exponentials in each loop of both
    products: "2", "1" and "0" where all but so many products are waited for, "e" for exponentials. spills: those in
    each such loop."""
    made = compiled(which, dim, shape, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops, spills = [], []
    for i, (_, text) in enumerate(lines):
        found = re.search(r"BRA\S* .*?0x([0-9a-f]+)", text)
        start = place.get(int(found.group(1), 16), i) if found else i
        body = [text for _, text in lines[start : i + 1]]
        if start < i < start + 1200 and sum("HGMMA" in text for text in body) >= 8:
            loops.append("".join(_letter(text) for text in body))
            spills.append(sum(bool(re.match(r"(@\S+ )?(LDL|STL)", text)) for text in body))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "spills": spills,
        "shared": made.metadata.shared,
        "loops": [re.sub("e+", "e", loop) for loop in loops],
        **{word: len(re.findall(rf"\b{word}", code)) for word in WORDS},
    }


def _letter(text: str) -> str:
    wait = re.search(r"WARPGROUP.DEPBAR.LE gsb0, 0x(\d)", text)
    return wait.group(1) if wait else "e" if "MUFU.EX2" in text else ""


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    print(json.dumps([facts(which, dim, shape, **options) for which, dim, shape, options in json.loads(sys.argv[1])]))
