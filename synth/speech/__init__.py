"""Render specs to speech, by espeak-ng in a separate process."""
