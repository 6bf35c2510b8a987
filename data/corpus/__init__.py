"""Documents encoded once into memory-mapped arrays, and what is known of them."""
