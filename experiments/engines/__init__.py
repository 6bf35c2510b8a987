"""What distributes trials: a pool of processes on this machine, SLURM, or a Ray cluster."""
