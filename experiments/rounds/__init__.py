"""Rounds of one line: each labels and filters with what the last one trained, trains again, and is compared with it."""
