"""Stages that run once and resume: their folders, in the store or in a run, their keys, and what differs."""
