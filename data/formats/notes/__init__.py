"""What was not read, and why: counted, noted, and refused where it matters."""
