"""Estimates for a run: memory, step time, the longest sequence and the best mesh before a GPU hour is spent."""
