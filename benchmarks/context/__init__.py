"""Long prompts, long sequences, long generation."""
