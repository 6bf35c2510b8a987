"""A full disk is known in whatever words a library tells it, and `brine train` says it in one sentence."""

import errno

import pytest

from brine.common.files import full_disk_number
from tests.forked import Command

TRAIN = """
import resource, signal, sys, torch
from brine import train
from brine.common.tensor_files import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
train.run_pipeline = lambda *_, **__: save_tensors({"a": torch.zeros(10_000)}, sys.argv[1])
train.check_paths = lambda corpus: None
sys.exit(train.main(["quick"]))
"""


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (ValueError("rank 1: OSError: [Errno 122] Disk quota exceeded: free some space"), errno.EDQUOT),
        (caused(ValueError("could not be written"), OSError(errno.EFBIG, "File too large")), errno.EFBIG),
        (PermissionError(errno.EACCES, "Permission denied"), None),
        (ValueError("[Errno 2] No such file"), None),
        (ValueError("seq_len = 28"), None),
    ],
)
def test_a_full_disk_is_known_by_its_number(error, number):
    assert full_disk_number(error) == number


@pytest.mark.slow
def test_weights_that_do_not_fit_are_told_in_a_sentence(tmp_path):
    process = Command(["-c", TRAIN, str(tmp_path / "model.safetensors")])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "error: the disk is full (" in said and "model.safetensors" in said, said[-3000:]
    assert "the same command resumes" in said and "Traceback" not in said
