"""Checkpoints that are complete or absent, written while training goes on."""
