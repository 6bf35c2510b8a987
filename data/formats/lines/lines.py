"""JSON objects out of a file, one at a time, in bounded memory: one per line, or the elements of one array.

A file is an array when it opens with `[` and `{`, `]` or `[{`, unless its first line is a list that others follow. One
that opens with `{` alone on its line holds one object over several lines. All else is read line by line. A list of
turns is a conversation. An array may be gigabytes: it is read through a window that grows to the longest element, at
most to `max_line_mib`; an element that is not JSON is skipped by counting brackets outside strings, and costs one
document. Lines end with LF, CR LF or CR; byte-order marks are dropped; gzip, bzip2 and xz are decompressed.
"""

import json
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from brine.data.document import DocumentError
from brine.data.files.compressed import decompression_error, detect_compression, open_decompressed
from brine.data.files.pointers import pointer_in
from brine.data.files.text import encoding_hint, foreign_encoding, iconv_hint, strip_bom

LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl")
"""Endings of files of an object a line; .jl is that of Julia's programs too."""
_BLOCK = 2**20
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)*\s*\[\s*(?:[{\]]|\[\s*\{)")
_SPREAD = re.compile(rb"(?:\xef\xbb\xbf)*\s*\{[ \t]*\r?\n\s*[\"}]")
_SPACE = re.compile("[ \t\r\n\ufeff]*")
# strings hide brackets, and backslashes hide the end of a string
_OUTSIDE, _INSIDE = re.compile(r'["{}\[\],]'), re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TURN = {"role", "from"}
_DECODER = json.JSONDecoder()


def json_items(file: Path, *, max_line_mib: float, checked: bool = True) -> Iterator[tuple[int, dict | DocumentError]]:
    """(line or index from 1, object) for each JSON object of a file, or the error of one that cannot be read.

    checked: of a compressed file only what its checksums confirm; False where only the first lines are looked at.
    """
    number, limit = 0, int(max_line_mib * 2**20)
    too_long = f"longer than max_line_mib={max_line_mib:g}"
    try:
        check_encoding(file)
        if is_array(file) or is_spread(file):
            read = _array if is_array(file) else _spread
            items = enumerate(read(file, limit, too_long, checked), start=1)
        else:
            lines = enumerate(_bounded_lines(file, limit, checked), start=1)
            items = ((n, _parsed(line, too_long)) for n, line in lines if line is None or line.strip())
        for number, item in items:
            yield number, item
    except DocumentError as error:
        # of the file as a whole, or of what follows
        yield number + 1, error


def _parsed(line: bytes | None, too_long: str) -> dict | DocumentError:
    try:
        return DocumentError(too_long) if line is None else parse_object(line)
    except DocumentError as error:
        return error


def is_array(file: Path) -> bool:
    """Whether a file opens like one JSON array of objects or conversations, and not like a list on every line."""
    with open_decompressed(file) as stream:
        head = stream.read(4096)
        if not _ARRAY.match(head):
            return False
        first, _, rest = (head + stream.read(_BLOCK)).lstrip().replace(b"\r", b"\n").partition(b"\n")
    return not (first.rstrip().endswith(b"]") and rest.lstrip()[:1] in (b"[", b"{"))


def is_spread(file: Path) -> bool:
    """Whether a file opens like an object written over several lines, which no line of it is."""
    with open_decompressed(file) as stream:
        return _SPREAD.match(stream.read(4096)) is not None


def check_encoding(file: Path) -> None:
    """DocumentError, with the command that helps, for a file of UTF-16 or UTF-32 and for a pointer to another."""
    if problem := pointer_in(file):
        raise DocumentError(f"file {file.name!r} {problem}")
    with open_decompressed(file) as stream:
        encoding = foreign_encoding(stream.read(64))
    if encoding is not None:
        packing = detect_compression(file)
        unpack = packing.unpack if packing else ""
        raise DocumentError(f"file {file.name!r} is {encoding}, not UTF-8: {iconv_hint(encoding, file.name, unpack)}")


def check_complete(stream: BinaryIO) -> None:
    """DocumentError when a compressed stream that is at its end was cut, damaged or stopped."""
    if problem := decompression_error(stream):
        raise DocumentError(problem)


def parse_object(line: bytes) -> dict:
    """One JSON object. Raises DocumentError with the reason for anything else."""
    try:
        # the codec that drops a mark is far slower than this
        fields = json.loads(strip_bom(line).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 (byte {error.start}): {encoding_hint(line)}") from None
    except RecursionError:
        raise DocumentError("JSON nested too deeply") from None
    except ValueError as error:
        # the reader's own message quotes nothing of the line, so it is safe and short
        raise DocumentError(f"not JSON ({error})") from None
    return _object(fields)


def list_in(text: str, *, is_text: bool = False):
    """A list as JSON text, as tables hold it; with `is_text` a text that only begins like a list of objects stays one.

    Raises DocumentError for what cannot be parsed.
    """
    try:
        # parsed inside an object, by the one guarded parser
        found = parse_object(f'{{"list": {text}}}'.encode("utf-8", "surrogatepass"))["list"]
    except DocumentError:
        if is_text:
            return text
        raise
    return text if is_text and not (found and all(isinstance(part, dict) for part in found)) else found


def _object(fields) -> dict:
    if isinstance(fields, list) and fields and all(isinstance(turn, dict) and _TURN & turn.keys() for turn in fields):
        # a conversation without an object around it
        return {"messages": fields}
    if not isinstance(fields, dict):
        raise DocumentError(f"a document must be a JSON object, not {type(fields).__name__}")
    # the mark of a table's first line, which whoever made lines of the table took for a part of the first name
    if next(iter(fields), "").startswith("\ufeff"):
        fields = {key.lstrip("\ufeff"): value for key, value in fields.items()}
    return fields


def _bounded_lines(file: Path, limit: int, checked: bool) -> Iterator[bytes | None]:
    """Lines of a file without their ends; None for one longer than `limit` bytes, which is never held in memory."""
    held, size = [], 0
    with open_decompressed(file, checked=checked) as stream:
        while block := stream.read(_BLOCK):
            # a CR LF must not be torn apart
            block += stream.read(1) if block.endswith(b"\r") else b""
            for piece in block.splitlines(keepends=True):
                content = piece.rstrip(b"\r\n")
                size += len(content)
                if size <= limit:
                    held.append(content)
                else:
                    held.clear()
                if len(content) < len(piece):
                    yield b"".join(held) if size <= limit else None
                    held, size = [], 0
        check_complete(stream)
    if size:
        yield b"".join(held) if size <= limit else None


class _Window:
    """The part of a text file that is looked at; `text` from `offset` on is still to be read."""

    def __init__(self, file: Path, checked: bool):
        # bytes that are not UTF-8 become lone surrogates, for which only their element is refused
        plain = open_decompressed(file, checked=checked)
        self.stream = TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.text, self.offset, self.at_end = "", 0, False

    def grow(self, characters: int) -> None:
        """Drop what is done with, and read on."""
        more = self.stream.read(characters)
        self.at_end = not more
        self.text, self.offset = self.text[self.offset :] + more, 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self.offset = _SPACE.match(self.text, self.offset).end()
            if self.offset < len(self.text) or self.at_end:
                return self.text[self.offset : self.offset + 1]
            self.grow(_BLOCK)


def _array(file: Path, limit: int, too_long: str, checked: bool) -> Iterator[dict | DocumentError]:
    window = _Window(file, checked)
    with window.stream as stream:
        window.peek()
        window.offset += 1
        while (mark := window.peek()) and mark != "]":
            if mark == ",":
                window.offset += 1
                continue
            item = _element(window, limit, too_long)
            if isinstance(item, DocumentError):
                check_complete(stream.buffer)
            yield item
        check_complete(stream.buffer)
        window.offset += 1
        if not mark:
            yield DocumentError("the file ends before the array does: it was cut")
        elif window.peek():
            yield DocumentError("more follows behind the array's end: write one array, or an object a line")


def _spread(file: Path, limit: int, too_long: str, checked: bool) -> Iterator[dict | DocumentError]:
    """The object written over several lines; an error where more follows it."""
    window = _Window(file, checked)
    with window.stream as stream:
        window.peek()
        item = _element(window, limit, too_long)
        if window.peek():
            first = (
                f"{item}, in the first object" if isinstance(item, DocumentError) else "more follows its first object"
            )
            item = DocumentError(
                f"{first}: objects over several lines each are not read one after another: write each on a line of its "
                "own (`jq -c . FILE > LINES`, or json.dumps without indent), or all as one array"
            )
        else:
            check_complete(stream.buffer)
        yield item


def _element(window: _Window, limit: int, too_long: str) -> dict | DocumentError:
    """The next element; the window stands behind it afterwards."""
    while True:
        try:
            fields, end = _DECODER.raw_decode(window.text, window.offset)
            # a number or word at the window's end may continue beyond it
            if end < len(window.text) or window.at_end:
                window.offset = end
                return _object(fields)
            reason = "not JSON"
        except DocumentError as error:
            return error
        except RecursionError:
            reason = "JSON nested too deeply"
        except ValueError as error:
            reason = f"not JSON ({getattr(error, 'msg', error)})"
        held = len(window.text) - window.offset
        if window.at_end or held > limit:
            return DocumentError(too_long if _skip_element(window) > limit else reason)
        window.grow(max(_BLOCK, held))


def _skip_element(window: _Window) -> int:
    """Skip an element that cannot be decoded, to its closing bracket or a comma; returns the characters passed."""
    depth, passed, in_string = 0, 0, False
    while True:
        start, mark = window.offset, ""
        if in_string:
            # ends at the closing quote or where the window does, before a backslash whose other half is to come
            stop = _IN_STRING.match(window.text, start).end()
            if window.text[stop : stop + 1] == '"':
                mark, stop = '"', stop + 1
        else:
            match = (_INSIDE if depth else _OUTSIDE).search(window.text, start)
            mark, stop = (match[0], match.end()) if match else ("", len(window.text))
        # a comma, or the bracket that closes the array itself, is not part of the element; a stray brace is
        is_outer = not in_string and (mark == "," or (mark == "]" and not depth))
        window.offset = stop - is_outer
        passed += window.offset - start
        if not mark:
            if window.at_end:
                window.offset = len(window.text)
                return passed
            window.grow(_BLOCK)
        elif mark == '"':
            in_string = not in_string
        elif not is_outer:
            depth += 1 if mark in "{[" else -1
        if mark and not in_string and depth <= 0 and mark in ",}]":
            return passed
