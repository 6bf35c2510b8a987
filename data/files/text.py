"""Bytes of a text file as text: UTF-8, with or without a byte-order mark, and any of the three line ends.

The mark is dropped. UTF-16 and UTF-32, which Windows programs write for "Unicode", are refused by name with the command
that converts, so that there is one encoding to reason about.
"""

import os
import re
import shlex

from brine.data.document import DocumentError
from brine.data.files.signatures import identify_format

BOM = b"\xef\xbb\xbf"
# by its mark, else by the zeros beside the first ASCII characters (RFC 4627, section 3)
_FOREIGN = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16"),
    (rb"(?:[\t\n\r -~]\0\0\0){2}", "UTF-32LE"),
    (rb"(?:\0\0\0[\t\n\r -~]){2}", "UTF-32BE"),
    (rb"(?:[\t\n\r -~]\0){4}", "UTF-16LE"),
    (rb"(?:\0[\t\n\r -~]){4}", "UTF-16BE"),
)


def decode_text(content: bytes, label: str) -> str:
    """Bytes as text, without a byte-order mark. Raises DocumentError, with the remedy, for what is not UTF-8."""
    if encoding := foreign_encoding(content[:64]):
        raise DocumentError(f"{label} is {encoding}, not UTF-8: {iconv_hint(encoding)}")
    try:
        return re.sub("\r\n?", "\n", strip_bom(content).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"{label} is not UTF-8 (byte {error.start}): {encoding_hint(content)}") from None


def strip_bom(content: bytes) -> bytes:
    """Bytes without the marks of UTF-8 before them, of which joined files and careless programs leave several."""
    while content.startswith(BOM):
        content = content[len(BOM) :]
    return content


def foreign_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, as iconv names it, of text that begins with `head`; None for any other."""
    return next((encoding for pattern, encoding in _FOREIGN if re.match(pattern, head)), None)


def encoding_hint(content: bytes) -> str:
    """What to do about bytes that are not UTF-8, as the end of a message: they may not be text at all."""
    if known := identify_format(content[:1024]):
        return f"it is {known[0]}, not text"
    if b"\0" in content[:65536]:
        return "it is not text"
    try:
        # Windows-1252 has signs where Latin-1 has none
        is_windows = bool(content.decode("cp1252")) and re.search(rb"[\x80-\x9f]", content[: 2**20])
    except UnicodeDecodeError:
        is_windows = False
    return iconv_hint("CP1252" if is_windows else "LATIN1")


def iconv_hint(encoding: str, name: str = "FILE", unpack: str = "") -> str:
    """The remedy for a text of another encoding. unpack: the command that unpacks it first."""
    guess = {"LATIN1": "if it is Latin-1, ", "CP1252": "if it is Windows-1252, "}.get(encoding, "")
    plain = os.path.splitext(name)[0] if unpack and name.lower().endswith((".gz", ".bz2", ".xz")) else name
    file, new = shlex.quote(name), "NEW" if name == "FILE" else shlex.quote(f"utf8-{plain}")
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"{guess}convert it by `{f'{unpack} {file} | {convert}' if unpack else f'{convert} {file}'} > {new}`"
