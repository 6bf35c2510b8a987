"""Documents in, packed batches out; see README.md. Nothing here knows the model."""
