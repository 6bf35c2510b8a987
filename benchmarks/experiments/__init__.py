"""Experiments of the project's own, by `brine experiments run`; LOG.md says what came out."""
