"""Recipes to image and video files."""
