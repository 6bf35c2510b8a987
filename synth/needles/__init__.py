"""Needles: facts in a long context that are asked for at its end, to train and to measure."""
