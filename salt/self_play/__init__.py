"""Self-play: a model asks and answers what a rule can check; what it gets right but is unsure of is kept."""
