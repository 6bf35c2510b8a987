"""Says once what an "auto" chose and why: the same choice at every layer and step is news only the first time."""

import logging

_announced: set[tuple[str, str]] = set()


def announce(logger: str, choice: str) -> None:
    """Log `choice` at level INFO of `logger`, the first time that it is made in this process."""
    if (logger, choice) not in _announced:
        _announced.add((logger, choice))
        logging.getLogger(logger).info(choice)
