"""Measurements of the kernels and of training, each against what one would otherwise use, in one and the same run.

    python -m benchmarks.kernels.attention      attention over spans against SDPA, FlexAttention and flash-attn
    python -m benchmarks.kernels.linear_loss    the fused head and loss against plain PyTorch and Liger
    python -m benchmarks.training.train_cpu     training steps against transformers' Llama of the same shape
    python -m benchmarks.gpu                    a first hour on a GPU

These and others are in `context`, `data`, `gpu`, `kernels` and `training`.

A script runs its operation's tests first and refuses to report when they fail; it measures what the machine can do at
best (the roofline) and then all implementations in turn, and appends one line with hardware, versions and commit to
`benchmarks/results/<name>.jsonl`. `--quick` tries everything at toy sizes and writes nothing. The last line printed is
JSON. Measurements in the README and in LOG.md come from such lines, or from a run's
`summary.json`, kept beside them. Nothing in the project imports this package.
"""
