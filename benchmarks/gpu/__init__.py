"""A first hour on a GPU that leaves numbers whatever happens: `python -m benchmarks.gpu`."""
