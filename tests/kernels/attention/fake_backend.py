"""Backends of attention and a GPU that are not there, for tests of what "auto" chooses."""

from types import SimpleNamespace

import torch

from brine.kernels.attention import reference
from brine.kernels.attention import select_backend as choose
from brine.kernels.attention.spans import KINDS, AttentionRequest, Mask
from tests.kernels.fake_gpu import FakeGpu

CARD = torch.device("cuda", 0)


def fake(refuses=lambda q, kind, sink: None, **functions) -> SimpleNamespace:
    """A backend that is the reference, but for what is given."""
    return SimpleNamespace(
        unsupported_reason=lambda q, k, *, kind, sink: refuses(q, kind, sink),
        forward=functions.get("forward", reference.forward),
        backward=functions.get("backward", reference.backward),
    )


class Card(FakeGpu):
    """It has backends that refuse what the real ones do."""

    def check(self, module, **options):
        name = next(name for name, known in choose._modules.items() if known is module)
        self.checked.append((name, options["kind"], options["dtype"]))
        wrong = self.wrong.get(name)
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    def install(self, *names: str, mask_mod: bool = False) -> None:
        """Have these backends there and no others; mask_mod: flash-attn-4 is."""

        def old():
            return None if self.capability >= (8, 0) else "needs sm_80"

        def flash(q, kind, sink):
            if q.dtype not in (torch.bfloat16, torch.float16):
                return "takes 16 bits"
            return old() or (None if kind in ("causal", "window") or mask_mod else "needs flash-attn-4")

        def triton(q, kind, sink):
            return "no float64" if q.dtype == torch.float64 else old()

        def flex(q, kind, sink):
            return "no float64" if q.dtype == torch.float64 else None

        def gluon(q, kind, sink):
            if self.capability[0] != 9 or q.dtype.itemsize != 2 or kind == "moving":
                return "for sm_90 and 16 bits"
            return None

        for name, refuses in {"flash": flash, "gluon": gluon, "triton": triton, "flex": flex}.items():
            if name in names:
                self.patch.setitem(choose._modules, name, fake(refuses))
            else:
                self.patch.setitem(choose._absent, name, f"{name} is not installed")

    def take(self, kind="causal", dtype=torch.bfloat16, rows=300, keys=300, dim=64, **options) -> str:
        """The name of what "auto" takes."""
        q = SimpleNamespace(device=CARD, dtype=dtype, shape=(1, rows, 4, dim))
        k = SimpleNamespace(device=CARD, dtype=dtype, shape=(1, keys, 2, dim))
        mask = Mask(None, None, len(KINDS) * 10**9 + KINDS.index(kind))
        module = choose.backend_for(q, k, AttentionRequest(mask, 1.0, **options), "auto")
        return next(name for name, known in choose._modules.items() if known is module)
