"""OBELICS' form: two lists of one length, `{"texts": ["a", null, "b"], "images": [null, "1.jpg", null]}`.

At each place stands a text or a picture; the page is read in that order. Where both are given the picture comes
first. Two texts in a row are paragraphs and are kept apart by an empty line. Pictures must be files beside the
manifest: the addresses of the published data set are remote, and each such document is set aside with that reason.
"""

from data.document import Document, DocumentError, Image, Part, Text
from data.formats.parts import local_path
from data.formats.splits import UNASSIGNED


def obelics_document(fields: dict, *, name: str) -> Document:
    """A document from one page; `name` is its id. Raises DocumentError naming what is wrong."""
    texts, images = fields.get("texts"), fields.get("images")
    for key, value in (("texts", texts), ("images", images)):
        if not isinstance(value, list):
            raise DocumentError(f"field {key!r} must be of type list, not {type(value).__name__}")
    if len(texts) != len(images):
        raise DocumentError(f"'texts' has {len(texts)} entries and 'images' {len(images)}: they must be parallel")
    parts: list[Part] = []
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        if image is not None:
            parts.append(Image(local_path(image, where=f"image {number}")))
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise DocumentError(f"text {number} must be a string or null, not {type(text).__name__}")
        if parts and isinstance(parts[-1], Text):
            parts.append(Text("\n\n"))
        parts.append(Text(text))
    if not any(isinstance(part, Text) for part in parts):
        raise DocumentError("the page has no text: there is nothing to learn from")
    return Document(id=name, parts=tuple(parts), kind="page", split=UNASSIGNED)
