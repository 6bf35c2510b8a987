"""Folders to documents: captions beside media, Markdown pages, source repositories, downloads."""
