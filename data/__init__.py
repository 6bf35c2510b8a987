"""The data room: documents in, packed batches out.

    document.py    what a document is: parts of text, picture, sound and film, read from one JSON line
    readers.py     manifests (content parts, captioned media, Markdown pages) to documents
    tokenizer.py   byte-level BPE and the special tokens
    config.py      EncodeConfig: every number that decides how media become tokens
    lengths.py     the one length function, used by encoder and tests alike
    decode*.py     media files to patches, in subprocesses that can be killed
    encode.py      Document to Sequence: every token at (t, h, w)
    store.py       a manifest encoded once, memory-mapped ever after
    plan.py        which documents go into which row, decided ahead
    batch.py       rows to tensors
    loader.py      batches in order; its state is one integer

Nothing here knows the model. Importing this package imports none of its files: decoding servers start
quickly because they import only what they use.
"""
