"""JSON objects out of a file, one at a time, in bounded memory: a line each, or the elements of one big array.

    json_items(file, max_line_mib=...)   (number, object or DocumentError); numbers are lines, or places in the file

An array may be gigabytes (LLaVA's files are): it is read through a window that grows to the longest element and no
further than `max_line_mib`. An element that is no JSON is stepped over by counting brackets outside strings, so that
it costs one document and not the rest of the file; only an array that ends before its bracket costs what would have
come. The C decoder does the work, at some 200 MB/s; bracket counting, on bad elements alone, is slower: 5 million
brackets a second.

A file is taken for an array when it opens with `[` and then `{`, `]` or `[{`, unless its first line is a whole list and
another list or object follows. One that opens with `{` alone on its line holds one object over several lines, or is
one error. Everything else is read line by line, and each bad line gives one error. A list of turns is a
conversation. What follows an array's end is an error. Lines end with LF, CR LF or CR alone, and may open with
byte-order marks (files that were joined have one in their middle, one that was marked twice has two), and so may the
first name of an object (a line made of a table that had a mark). Bytes that are no UTF-8 are an error of the line or
element that holds them; a file of UTF-16 or UTF-32 is one error as a whole. A file of gzip, bzip2 or xz is read as what
is in it (`data.compressed`).
"""

import json
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from data.compressed import open_plain, packing_in, problem_of
from data.document import DocumentError
from data.pointers import pointer_in
from data.text import convert, foreign_encoding, what_else, without_marks

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
    """(number, object) for each JSON object of a file; an error stands where one cannot be had.

    checked: of a compressed file only what its checksums vouch for; not so where the first lines are merely looked at.
    """
    number = 0
    try:
        check_encoding(file)
        for number, item in _items(file, max_line_mib, checked):
            yield number, item
    except DocumentError as error:
        # of the file as a whole, or of what comes after this place
        yield number + 1, error


def _items(file: Path, max_line_mib: float, checked: bool) -> Iterator[tuple[int, dict | DocumentError]]:
    limit = int(max_line_mib * 2**20)
    if is_array(file) or is_spread(file):
        read = _array if is_array(file) else _spread
        yield from read(file, limit, max_line_mib, checked)
        return
    for number, line in enumerate(_bounded_lines(file, limit, checked), start=1):
        if line is None:
            yield number, DocumentError(f"longer than max_line_mib={max_line_mib:g}")
        elif line.strip():
            yield number, _guarded(line)


def is_array(file: Path) -> bool:
    """Whether a file opens like one JSON array of objects or conversations, and not like a list on every line."""
    with open_plain(file) as stream:
        head = stream.read(4096)
        if not _ARRAY.match(head):
            return False
        first, _, rest = (head + stream.read(_BLOCK)).lstrip().replace(b"\r", b"\n").partition(b"\n")
    return not (first.rstrip().endswith(b"]") and rest.lstrip()[:1] in (b"[", b"{"))


def is_spread(file: Path) -> bool:
    """Whether a file opens like an object written over several lines, which no line of it is."""
    with open_plain(file) as stream:
        return _SPREAD.match(stream.read(4096)) is not None


def check_encoding(file: Path) -> None:
    """DocumentError, with the command that helps, for a file of UTF-16 or UTF-32 and for a pointer to another."""
    if problem := pointer_in(file):
        raise DocumentError(f"file {file.name!r} {problem}")
    with open_plain(file) as stream:
        encoding = foreign_encoding(stream.read(64))
    if encoding is not None:
        packing = packing_in(file)
        unpack = packing.unpack if packing else ""
        raise DocumentError(f"file {file.name!r} is {encoding}, not UTF-8: {convert(encoding, file.name, unpack)}")


def check_whole(stream: BinaryIO) -> None:
    """DocumentError when a compressed stream that is at its end was cut, damaged or stopped."""
    problem = problem_of(stream)
    if problem:
        raise DocumentError(problem)


def parse_object(line: bytes) -> dict:
    """One JSON object. Raises DocumentError with the reason for anything else."""
    try:
        # the codec that drops a mark is far slower than this
        fields = json.loads(without_marks(line).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 (byte {error.start}): {what_else(line)}") from None
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


def _guarded(line: bytes) -> dict | DocumentError:
    try:
        return parse_object(line)
    except DocumentError as error:
        return error


def _bounded_lines(file: Path, limit: int, checked: bool) -> Iterator[bytes | None]:
    """Lines of a file without their ends; None for one longer than `limit` bytes, which is never held in memory."""
    held, size = [], 0
    with open_plain(file, checked=checked) as stream:
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
        check_whole(stream)
    if size:
        yield b"".join(held) if size <= limit else None


class _Window:
    """The part of a text file that is being looked at: `text` from `place` on is still to come."""

    def __init__(self, stream):
        self.stream, self.text, self.place, self.at_end = stream, "", 0, False

    def grow(self, characters: int) -> None:
        """Drop what is done with, and read on."""
        more = self.stream.read(characters)
        self.at_end = not more
        self.text, self.place = self.text[self.place :] + more, 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()
            if self.place < len(self.text) or self.at_end:
                return self.text[self.place : self.place + 1]
            self.grow(_BLOCK)


def _array(file: Path, limit: int, max_line_mib: float, checked: bool) -> Iterator[tuple[int, dict | DocumentError]]:
    # a byte that is no UTF-8 becomes a lone surrogate, which only the element that holds it is refused for
    plain = open_plain(file, checked=checked)
    with TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        window, number = _Window(stream), 0
        window.peek()
        window.place += 1
        while (mark := window.peek()) and mark != "]":
            if mark == ",":
                window.place += 1
                continue
            number += 1
            item = _element(window, limit, max_line_mib)
            if isinstance(item, DocumentError):
                check_whole(stream.buffer)
            yield number, item
        check_whole(stream.buffer)
        window.place += 1
        if not mark:
            yield number + 1, DocumentError("the file ends before the array does: it was cut")
        elif window.peek():
            yield number + 1, DocumentError("more follows behind the array's end: write one array, or an object a line")


def _spread(file: Path, limit: int, max_line_mib: float, checked: bool) -> Iterator[tuple[int, dict | DocumentError]]:
    """The object written over several lines; an error where more follows it."""
    plain = open_plain(file, checked=checked)
    with TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        window = _Window(stream)
        window.peek()
        item = _element(window, limit, max_line_mib)
        if window.peek():
            first = (
                f"{item}, in the first object" if isinstance(item, DocumentError) else "more follows its first object"
            )
            item = DocumentError(
                f"{first}: objects over several lines each are not read one after another; write each on a line of its "
                "own (`jq -c . FILE > LINES`, or json.dumps without indent), or all as one array"
            )
        else:
            check_whole(stream.buffer)
        yield 1, item


def _element(window: _Window, limit: int, max_line_mib: float) -> dict | DocumentError:
    """The next element; the window stands behind it afterwards."""
    while True:
        try:
            fields, end = _DECODER.raw_decode(window.text, window.place)
            # a number or word at the window's end may go on beyond it
            if end < len(window.text) or window.at_end:
                window.place = end
                return _object(fields)
            reason = "not JSON"
        except DocumentError as error:
            return error
        except RecursionError:
            reason = "JSON nested too deeply"
        except ValueError as error:
            reason = f"not JSON ({getattr(error, 'msg', error)})"
        held = len(window.text) - window.place
        if window.at_end or held > limit:
            break
        window.grow(max(_BLOCK, held))
    if _step_over(window) > limit:
        reason = f"longer than max_line_mib={max_line_mib:g}"
    return DocumentError(reason)


def _step_over(window: _Window) -> int:
    """Go behind an element that cannot be decoded, to its closing bracket or a comma; returns the characters passed."""
    depth, passed, in_string = 0, 0, False
    while True:
        start = window.place
        if in_string:
            # ends at the closing quote or where the window does, before a backslash whose other half is to come
            stop = _IN_STRING.match(window.text, start).end()
            mark = window.text[stop : stop + 1]
            mark, stop = (mark, stop + 1) if mark == '"' else ("", stop)
        else:
            match = (_INSIDE if depth else _OUTSIDE).search(window.text, start)
            mark, stop = (match[0], match.end()) if match else ("", len(window.text))
        # a comma, or the bracket that closes the array itself, is not part of the element; a stray brace is
        is_outer = not in_string and (mark == "," or (mark == "]" and not depth))
        window.place = stop - is_outer
        passed += window.place - start
        if not mark:
            if window.at_end:
                window.place = len(window.text)
                return passed
            window.grow(_BLOCK)
        elif mark == '"':
            in_string = not in_string
        elif not is_outer:
            depth += 1 if mark in "{[" else -1
        if mark and not in_string and depth <= 0 and mark in ",}]":
            return passed
