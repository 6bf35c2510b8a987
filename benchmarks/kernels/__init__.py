"""Attention, context parallelism and the fused loss against their peers."""
