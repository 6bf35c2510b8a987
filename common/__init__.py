"""The ground floor: files, processes, formatting and units; nothing here imports another package of the project."""
