"""Order only: the longest file first, so that two processes end at about the same time."""


def pytest_collection_modifyitems(items):
    """Tests of the whole line go first; the others keep their order."""
    items.sort(key=lambda item: item.path.name != "test_line.py")
