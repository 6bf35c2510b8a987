"""Attention over spans on the CPU: tiles over PyTorch's flash op, plain matrix products where it is wrong or slow."""
