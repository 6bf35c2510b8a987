"""A GPU that is not there, for tests of what "auto" chooses."""

import torch


class FakeGpu:
    """Named "Card", of a compute capability to be set; `checked` and `wrong` are for the self-check of a subclass."""

    def __init__(self, monkeypatch, selfcheck):
        self.patch, self.capability, self.checked, self.wrong = monkeypatch, (9, 0), [], {}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: self.capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Card")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(selfcheck, "check", self.check)
