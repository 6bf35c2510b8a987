"""Render specs to speech, by espeak-ng in a process of its own."""
