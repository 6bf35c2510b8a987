"""Attention over a sequence that is spread over ranks; see README.md."""
