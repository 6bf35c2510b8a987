"""One decoder-only transformer for text, image, audio and video tokens; it knows no parallelism and no data."""
