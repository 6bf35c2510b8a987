"""SALT (2410.18779): a small model's soft labels and data selection for a large one."""
