"""Models with their lineage, one champion among them, the gate that a new champion passes, and the way back."""
