"""Files, processes, formatting and units, which import no other package of the project."""
