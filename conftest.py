"""The order of test files, and one thread to a process, children included: two processes share two cores, and threads
that wait for one another wait by spinning. Here rather than in `tests`, so that it is loaded before any library.
"""

import os

LONG = ("test_triton.py", "test_parallel.py", "test_pipeline.py", "test_standin.py", "test_resume.py")
"""Files that begin first, so that no process is left alone with them at the end."""

# libraries read it when they are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    # a stable order, the same in every process
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
