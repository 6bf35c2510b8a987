"""What a run is made from: its sources of documents, and what it takes over from an earlier run."""
