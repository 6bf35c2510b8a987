"""Documents in, packed batches out; see README.md. Of the model it imports `Inputs` alone."""
