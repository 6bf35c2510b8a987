"""Compiles the specialised forward as its launcher would launch it on an sm_90 that is not here; JSON on stdout.

    python tests/kernels/gluon_compile.py '[[128, [128, 2, true, false], {}], ..]'      head dim, shape, options

In a process of its own: Triton's driver is replaced, and tests beside this one ask for the interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from kernels import Spans
from kernels.attention import gluon_forward, gluon_launch

WORDS = ("HGMMA", "USETMAXREG", "LDL", "STL", "UTMALDG")


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


def compiled(dim: int, shape: list, sink: bool = False, wide: bool = False, dtype: str = "bfloat16"):
    """The kernel for one call over 200 tokens."""
    q, k = (torch.zeros(1, 200, heads, dim, dtype=getattr(torch, dtype)) for heads in (8, 2))
    spans = Spans.packed(torch.zeros(1, 200, dtype=torch.int32))
    kernel = Compiling(gluon_forward.span_attention_gluon_fwd_kernel)
    with (
        mock.patch.object(gluon_launch, "why_not", lambda *args, **kwargs: None),
        mock.patch.object(gluon_forward, "span_attention_gluon_fwd_kernel", kernel),
    ):
        gluon_launch.forward(
            q, k, k, spans.lo, spans.hi, scale=0.1, sink=torch.zeros(8) if sink else None, wide=wide,
            shape=gluon_launch.Shape(*shape),
        )  # fmt: skip
    return kernel.made


def facts(dim: int, shape: list, **options) -> dict:
    """Counts of what matters in the machine code, and the order of waits and exponentials in each loop of both
    products: "1" and "0" where all but one or all products are waited for, "e" for exponentials."""
    made = compiled(dim, shape, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, text) in enumerate(lines):
        found = re.search(r"BRA\S* .*?0x([0-9a-f]+)", text)
        start = place.get(int(found.group(1), 16), i) if found else i
        body = [text for _, text in lines[start : i + 1]]
        if start < i < start + 1200 and sum("HGMMA" in text for text in body) >= 8:
            loops.append("".join(_letter(text) for text in body))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "shared": made.metadata.shared,
        "loops": [re.sub("e+", "e", loop) for loop in loops],
        **{word: len(re.findall(rf"\b{word}", code)) for word in WORDS},
    }


def _letter(text: str) -> str:
    wait = re.search(r"WARPGROUP.DEPBAR.LE gsb0, 0x(\d)", text)
    return wait.group(1) if wait else "e" if "MUFU.EX2" in text else ""


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    print(json.dumps([facts(dim, shape, **options) for dim, shape, options in json.loads(sys.argv[1])]))
