"""What is extracted from source files: features, metrics, regions, clusters and splits."""
