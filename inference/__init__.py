"""Inference: prompts, prefill, cache, generation, chat."""
