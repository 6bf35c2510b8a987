"""A trained model at work: prompts, prefill, cache, generation, chat."""
