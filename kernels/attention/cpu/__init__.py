"""Attention over spans on the CPU: tiles over PyTorch's flash op, plain matmuls where it is wrong or slow."""
