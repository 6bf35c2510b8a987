"""The command line `brine data`: check, build, filter, plan, show, convert."""
