"""Needle-in-a-haystack evaluation."""
