"""What benchmarks share: records, clocks, peak memory, gates, comparisons in one run."""
