"""What tests of formats share: reading a source twice, and looking into its documents."""

import contextlib
import io
import shlex
import tarfile
from pathlib import Path

from brine.data.document import Audio, Document, Image, Quarantined, Text, Video
from brine.data.encode import encode
from brine.data.formats.convert import conversions
from brine.data.formats.open import open_source


def read(path, **options):
    """(documents, quarantined) of a source, read twice: order and content must not change."""
    source = open_source(path, **options)
    items = list(source.documents())
    assert items == list(source.documents())
    for item in items:
        assert isinstance(item, Quarantined) or item.split in ("train", "validation", "test")
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Quarantined)]


def encoded(document, root, tokenizer, config):
    """Media tokens of a document, each of which must be there when the document has such a medium."""
    sequence = encode(document, root=root, tokenizer=tokenizer, config=config)
    for kind, name in ((Image, "image"), (Audio, "audio"), (Video, "video")):
        assert bool(len(getattr(sequence, name))) == any(isinstance(part, kind) for part in document.parts)
    return sequence


def texts(document, *, loss_mask=None) -> str:
    return "".join(
        p.text for p in document.parts if isinstance(p, Text) and (loss_mask is None or p.loss_mask == loss_mask)
    )


def media(document) -> list[tuple[type, str]]:
    return [(type(part), part.path) for part in document.parts if not isinstance(part, Text)]


EVERY = [(Image, "m/a.png"), (Audio, "m/s.wav"), (Video, "m/v.mp4")]


def tar(members: dict[str, bytes], mode: str = "w", *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """The bytes of a tar, compressed where the mode says so."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=format) as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def follow_command(said: str, out: str = "") -> list[Path]:
    """What the command in a message writes, as a shell takes it apart, without the cost of one."""
    chunks = said.partition("`brine data convert ")[2].split("`")
    for count in range(1, len(chunks)):
        with contextlib.suppress(ValueError):
            # a backtick in quotes is one of a name
            path, *options = shlex.split("`".join(chunks[:count]))
            break
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.keys() <= {"--root", "--out"}
    root = Path(given["--root"]) if "--root" in given else None
    found = conversions(Path(path), root=root)
    return [file for each in found for file in each.write(out or given.get("--out", ""))]
