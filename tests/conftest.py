"""The order of files: long ones begin first, so that no process is left alone with them at the end."""

LONG = ("test_attention_triton.py", "test_standin.py", "test_parallel.py", "test_line.py")


def pytest_collection_modifyitems(items):
    # a stable order, the same in every process
    items.sort(key=lambda item: item.path.name not in LONG)
