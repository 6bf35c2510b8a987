"""Stages that run once, resume where they stopped, and are run again when their inputs change."""
