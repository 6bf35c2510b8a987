"""A machine whose card is the stand-in."""

import sys

import torch

from tests.standin import stand_in


def auto_is_the_card(monkeypatch) -> str:
    """From here on "auto" means the stand-in, as on a machine with a card; returns its name."""
    from brine.model import device

    resolve = device.resolve_device

    def resolved(name="auto"):
        return torch.device(stand_in.NAME) if str(name).startswith(("auto", stand_in.NAME)) else resolve(name)

    # those that imported it by name as well
    for module in list(sys.modules.values()):
        if getattr(module, "resolve_device", None) is resolve:
            monkeypatch.setattr(module, "resolve_device", resolved)
    return stand_in.NAME
