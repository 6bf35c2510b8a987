"""Files on disk: tars, compressed files, links, extensions, signatures, text encodings."""
