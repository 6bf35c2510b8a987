"""Attention over spans by flash-attn-4 and PyTorch's varlen kernels: backend "flash"."""
