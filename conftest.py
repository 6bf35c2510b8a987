"""The order of test files, one thread to a process, and compiled modules, for children too.

Two processes share two cores, and threads that wait for one another wait by spinning. Here rather than in `tests`, so
that it is loaded before any library.
"""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

LONG = (
    *("test_triton.py", "test_run.py", "test_pipeline.py", "test_parallel.py", "test_standin.py", "test_resume.py"),
    *("test_faults.py", "test_rounds.py", "test_gluon.py", "test_build.py", "test_compile_report.py", "test_docs.py"),
    *("test_wheel.py", "test_check_cluster.py", "test_measuring.py"),
)
"""Files that begin first, so that no process is left alone with them at the end."""
BYTECODE = Path(__file__).parent / ".pytest_cache" / "bytecode"
"""Where compiled modules lie when none may lie beside their sources."""

NONE_BESIDE = bool(os.environ.pop("PYTHONDONTWRITEBYTECODE", ""))

# libraries read it when they are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
if NONE_BESIDE:
    # else each of some two hundred processes would compile torch and this project anew, for one to three seconds
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(BYTECODE))


def pytest_collection():
    # nothing of what is collected and imported becomes garbage
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    # a stable order, the same in every process
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_unconfigure():
    if NONE_BESIDE:
        # of modules that tests wrote
        written = Path(tempfile.gettempdir()).resolve()
        shutil.rmtree(BYTECODE / written.relative_to(written.anchor), ignore_errors=True)
