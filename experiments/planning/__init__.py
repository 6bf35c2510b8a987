"""From an experiment to a frozen plan: settings as recipes, the trials, and a snapshot of the code."""
