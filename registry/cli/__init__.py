"""The command `brine registry`."""
