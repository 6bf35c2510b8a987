"""One file a stage of `benchmarks.card`."""
