"""Every common format in, documents out: `brine.data.formats.open.open_source(path).documents()`."""
