"""A corpus encoded block by block, by any number of processes on one machine or many."""
