"""The output head and its loss in one, without ever holding (tokens, vocabulary) logits. See README.md."""
