"""One trial: a training run in a process of its own, measured on a suite, and how it ended."""
