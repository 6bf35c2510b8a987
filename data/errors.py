"""The error that sets one document aside, shared by everything that reads documents and their files."""


class DocumentError(ValueError):
    """A document that cannot be used; the message says which field or file, and why."""
