"""One sample of each kind of document, its levels of difficulty and its questions."""
