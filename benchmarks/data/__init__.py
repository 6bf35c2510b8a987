"""Data throughput, packing at scale, fuzzing of media."""
