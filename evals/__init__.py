"""What a model learned, measured on held-out documents, with intervals."""
