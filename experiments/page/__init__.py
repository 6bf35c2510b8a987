"""The page of an experiment: one HTML file that opens offline, from its table."""
