"""The trainer: deterministic, resumable bit for bit, able to roll back a bad step."""
