"""Static decoding: a step of equal work per token at fixed addresses, which a CUDA graph can replay."""
