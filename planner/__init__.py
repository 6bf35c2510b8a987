"""A run on paper: memory, step time, the longest sequence and the best mesh before a GPU hour is spent."""
