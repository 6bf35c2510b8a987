"""Which backend an operation takes under "auto": measured tables, self-checks on this GPU, and what was chosen."""
