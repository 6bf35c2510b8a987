"""OBELICS' form: two lists of one length, `{"texts": ["a", null, "b"], "images": [null, "1.jpg", null]}`.

At each index stands a text or an image (of both the image is first); two texts in a row are paragraphs, with an empty
line between. Images must be files beside the manifest: the published addresses are remote, and refused.
"""

from brine.data.document import Document, DocumentError, Image, Part, Text
from brine.data.formats.lines.parts import local_path
from brine.data.formats.splits.rules import UNASSIGNED


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
