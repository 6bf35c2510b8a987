"""Checkpoints that are complete or absent, written while training continues."""
