"""JSON objects out of a file, one at a time, in bounded memory: one per line, or the elements of one array.

A file that opens with `[` and `{`, `]` or `[{` is an array, unless its first line is a list that others follow; one
that opens with `{` alone on its line holds one object over several lines; all others are read line by line. A list of
turns is a conversation. An array is read through a window that grows to the longest element. `ijson` is not used: it
cannot continue behind an element that is not JSON, which costs one document here.
"""

import json
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.compressed import decompression_error, detect_compression, open_decompressed
from brine.data.files.pointers import pointer_in
from brine.data.files.text import encoding_hint, foreign_encoding, iconv_hint

LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl")
"""Endings of files of an object a line; .jl is that of Julia's programs too."""
_BLOCK = 2**20
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)*\s*\[\s*(?:[{\]]|\[\s*\{)")
_SPREAD = re.compile(rb"(?:\xef\xbb\xbf)*\s*\{[ \t]*\r?\n\s*[\"}]")
_SPACE = re.compile("[ \t\r\n\ufeff]*")
# strings hide brackets, and a backslash hides the end of a string
_IN_STRING, _OUTSIDE = re.compile(r'(?:[^"\\]++|\\.)*+("?)', re.DOTALL), re.compile(r'[^"{}\[\],]*+(["{}\[\],]?)')
_TURN = {"role", "from"}
_DECODER, _TOO_LONG = json.JSONDecoder(), DocumentError("too long")
_ONE_A_LINE = (
    "objects over several lines each are not read one after another: write each on one line "
    "(`jq -c . FILE > LINES`, or json.dumps without indent), or all as one array"
)


def json_items(file: Path, *, max_line_mib: float, checked: bool = True) -> Iterator[tuple[int, dict | DocumentError]]:
    """(line or index from 1, object or error) of a JSON file.

    checked: only what a compressed file's checksums confirm.
    """
    number, limit = 0, int(max_line_mib * 2**20)
    try:
        check_encoding(file)
        read = _array if is_array(file) else _spread if is_spread(file) else _lines
        # bytes that are not UTF-8 become lone surrogates, for which only their object is refused
        plain = open_decompressed(file, checked=checked)
        with TextIOWrapper(plain, encoding="utf-8", errors="surrogateescape", newline=None) as stream:
            for number, item in enumerate(read(stream, limit), start=1):
                if item is _TOO_LONG:
                    item = DocumentError(f"longer than max_line_mib={max_line_mib:g}")
                if item is not None:
                    yield number, item
    except DocumentError as error:
        # of the file as a whole, or of what follows
        yield number + 1, error


def is_array(file: Path) -> bool:
    """Whether a file opens like one JSON array of objects or conversations, and not like a list on every line."""
    with open_decompressed(file) as stream:
        head = stream.read(4096)
        if not _ARRAY.match(head):
            return False
        first, _, rest = (head + stream.read(_BLOCK)).lstrip().replace(b"\r", b"\n").partition(b"\n")
    return not (first.rstrip().endswith(b"]") and rest.lstrip()[:1] in (b"[", b"{"))


def is_spread(file: Path) -> bool:
    """Whether a file opens like an object over several lines, of which no line is an object."""
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


def _check_complete(stream: TextIOWrapper) -> None:
    """DocumentError when a compressed stream that is at its end was cut, damaged or stopped."""
    if problem := decompression_error(stream.buffer):
        raise DocumentError(problem)


def parse_object(text: str) -> dict:
    """One JSON object. Raises DocumentError with the reason for anything else."""
    try:
        return _object(json.loads(text.lstrip("\ufeff")))
    except RecursionError:
        raise DocumentError("JSON nested too deeply") from None
    except ValueError as error:
        # the parser's message quotes nothing of the line, so it is safe and short
        raise DocumentError(f"not JSON ({error})") from None


def list_in(text: str, *, is_text: bool = False):
    """A list as JSON text; with `is_text` a text that only begins like one stays a text. DocumentError if malformed."""
    try:
        # parsed inside an object, by the one guarded parser
        found = parse_object(f'{{"list": {text}}}')["list"]
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
    # the mark of a table's first line, which became a part of the first name when lines were made of it
    if next(iter(fields), "").startswith("\ufeff"):
        fields = {key.lstrip("\ufeff"): value for key, value in fields.items()}
    return fields


def _lines(stream: TextIOWrapper, limit: int) -> Iterator[dict | DocumentError | None]:
    """The object of each line, None for an empty one; a line of more than `limit` bytes is never held in memory."""
    while line := stream.readline(limit + 1):
        rest, size = line, len(line)
        while not rest.endswith("\n") and (rest := stream.readline(limit + 1)):
            size += len(rest)
        if not rest.endswith("\n"):
            _check_complete(stream)
        line, num_bytes = line.removesuffix("\n"), size - rest.endswith("\n")
        try:
            if num_bytes <= limit and not line.isascii():
                num_bytes = max(num_bytes, len(line.encode()))
            if num_bytes > limit:
                yield _TOO_LONG
            else:
                yield parse_object(line) if line.strip(" \t\n\r\v\f") else None
        except UnicodeEncodeError as error:
            start = len(line[: error.start].encode())
            yield DocumentError(f"not UTF-8 (byte {start}): {encoding_hint(line.encode('utf-8', 'surrogateescape'))}")
        except DocumentError as error:
            yield error
    _check_complete(stream)


class _Window:
    """The part of a text file that is looked at; `text` from `offset` on is still to be read."""

    def __init__(self, stream: TextIOWrapper, limit: int):
        self.stream, self.limit, self.text, self.offset, self.at_end = stream, limit, "", 0, False

    def grow(self, characters: int = _BLOCK) -> None:
        more = self.stream.read(characters)
        self.at_end = not more
        self.text, self.offset = self.text[self.offset :] + more, 0

    def peek(self) -> str:
        while True:
            self.offset = _SPACE.match(self.text, self.offset).end()
            if self.offset < len(self.text) or self.at_end:
                return self.text[self.offset : self.offset + 1]
            self.grow()

    def element(self) -> dict | DocumentError:
        while True:
            try:
                fields, end = _DECODER.raw_decode(self.text, self.offset)
                # a number or word at the window's end may continue beyond it
                if end < len(self.text) or self.at_end:
                    self.offset = end
                    return _object(fields)
                reason = "not JSON"
            except DocumentError as error:
                return error
            except RecursionError:
                reason = "JSON nested too deeply"
            except ValueError as error:
                reason = f"not JSON ({getattr(error, 'msg', error)})"
            held = len(self.text) - self.offset
            if self.at_end or held > self.limit:
                return _TOO_LONG if self.skip() > self.limit else DocumentError(reason)
            self.grow(max(_BLOCK, held))

    def skip(self) -> int:
        """Skip an element that cannot be decoded, to its closing bracket or a comma; returns its characters."""
        depth, passed, in_string = 0, 0, False
        while True:
            found = (_IN_STRING if in_string else _OUTSIDE).match(self.text, self.offset)
            mark, end = found[1], found.end()
            # a comma, or the bracket that closes the array, is not part of the element; a stray brace is
            end -= not in_string and not depth and mark in (",", "]")
            passed += end - self.offset
            self.offset = end
            if mark == '"':
                in_string = not in_string
            elif mark:
                depth += (mark in "{[") - (mark in "}]")
                if depth <= 0 and mark in ",}]":
                    return passed
            elif self.at_end:
                self.offset = len(self.text)
                return passed
            else:
                self.grow()


def _array(stream: TextIOWrapper, limit: int) -> Iterator[dict | DocumentError]:
    window = _Window(stream, limit)
    window.peek()
    window.offset += 1
    while (mark := window.peek()) and mark != "]":
        if mark == ",":
            window.offset += 1
            continue
        item = window.element()
        if isinstance(item, DocumentError):
            _check_complete(stream)
        yield item
    _check_complete(stream)
    window.offset += 1
    if not mark:
        yield DocumentError("the file ends before the array does: it was cut")
    elif window.peek():
        yield DocumentError("more follows behind the array's end: write one array, or an object a line")


def _spread(stream: TextIOWrapper, limit: int) -> Iterator[dict | DocumentError]:
    window = _Window(stream, limit)
    window.peek()
    item = window.element()
    if window.peek():
        is_bad = isinstance(item, DocumentError)
        item = DocumentError(
            f"{f'{item}, in the first object' if is_bad else 'more follows its first object'}: {_ONE_A_LINE}"
        )
    else:
        _check_complete(stream)
    yield item
