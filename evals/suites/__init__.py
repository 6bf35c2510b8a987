"""Frozen evaluation suites: cases by content, made once, on which any run is measured at any time."""
