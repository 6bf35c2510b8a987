"""Render specs to image and video files."""
