"""What a run records: metrics, FLOP accounting, throughput, the environment."""
