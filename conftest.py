"""The order of test files: long ones begin first, so that no process is left alone with them at the end.

It lies here, as a conftest in `tests` would put that folder, whose folders are named like the rooms, before the rooms.
"""

LONG = ("test_attention_triton.py", "test_standin.py", "test_parallel.py", "test_line.py")


def pytest_collection_modifyitems(items):
    # a stable order, the same in every process
    items.sort(key=lambda item: item.path.name not in LONG)
