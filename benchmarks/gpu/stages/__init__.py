"""One file a stage of `benchmarks.gpu`."""
