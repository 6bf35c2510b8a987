"""Files as they lie on disk: tars, compressed files, links, extensions, signatures, text encodings."""
