"""A run is a Python function that returns a `Recipe`."""
