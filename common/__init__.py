"""Files, processes, formatting, command lines and plug-ins, which import no other package of the project."""
