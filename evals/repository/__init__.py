"""Names defined in another file of a package: the repository task."""
