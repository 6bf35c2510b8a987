"""Comparisons of models: of evaluated runs, of the two arms of a run, and the variance over seeds and cases."""
