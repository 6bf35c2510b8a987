"""Inspecting a corpus: what is in it, one document as the model sees it, how full its packed sequences are."""
