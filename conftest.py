"""The order of test files: long ones begin first, so that no process is left alone with them at the end. And one thread
to a process, children included: two processes share two cores, and threads that wait for one another wait by spinning.

It lies here, as a conftest in `tests` would put that folder, whose folders are named like the rooms, before the rooms.
"""

import os

LONG = ("test_attention_triton.py", "test_parallel.py", "test_line.py", "test_standin.py", "test_data_resume.py")

# libraries read it when they are loaded, which is after this file
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    # a stable order, the same in every process
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
