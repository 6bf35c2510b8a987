"""Attention over spans in Triton, portable over NVIDIA's sm_80, sm_90 and sm_100."""
