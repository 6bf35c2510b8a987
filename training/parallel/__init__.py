"""One model on many ranks: context parallelism, FSDP2, activation checkpointing, offloading."""
