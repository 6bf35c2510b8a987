"""Cells of tables: Parquet files and the Arrow files of Hugging Face datasets, by row and column. Needs pyarrow.

    read_cell(file, "12/image")        bytes of the medium in row 12, column `image`
    read_cell(file, "12/images/3")     the fourth of a list; "12/messages/0/content/1/image" and so on go deeper
    table_rows(file, address)          (row, values) one by one, media replaced by such addresses

A medium is bytes, or a struct with `bytes`; a struct whose bytes are null stands for the file at its `path`. Column
names are percent-encoded in an address. A single cell costs its column of a whole Parquet row group, of which the last
two are kept: random access is expensive. `datasets` is not used: it copies a table into its cache and decodes media.
Files are untrusted: Arrow data are validated, sizes bounded, and whatever pyarrow raises becomes a DocumentError."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from brine.data.document import DocumentError

MAX_GROUP_MIB = 2048.0
"""Largest column of one Parquet row group that is read at once, in MiB uncompressed."""
_BATCH_ROWS = 16
_opened: OrderedDict[tuple, object] = OrderedDict()
_groups: OrderedDict[tuple, object] = OrderedDict()


def load_pyarrow():
    """The pyarrow package. Raises DocumentError naming the extra that brings it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DocumentError(
            "Parquet and Arrow files need pyarrow, which is not installed: run with `uv run --extra hf ...`, or "
            "`pip install 'brine[hf]'`"
        ) from None
    return pyarrow


def read_cell(file: Path, inside: str, *, max_file_mib: float) -> bytes:
    """The bytes at `row/column[/field or place ...]` of a table. Raises DocumentError with the reason."""
    pyarrow = load_pyarrow()
    row, *steps = inside.split("/")
    if not (row.isascii() and row.isdigit() and len(row) < 16) or not steps:
        raise DocumentError(f"cell {inside[:200]!r} is not of the form row/column")
    try:
        value = _scalar(open_table(file), int(row), unquote(steps[0]))
        for step in steps[1:]:
            value = value[int(step)] if hasattr(value, "values") and step.isdigit() else value[unquote(step)]
        if isinstance(value, pyarrow.StructScalar):
            value = value["bytes"]
        content = value.as_py()
    except DocumentError:
        raise
    except (pyarrow.ArrowException, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DocumentError(f"cell {inside[:200]!r} cannot be read ({str(error)[:200]})") from None
    if not isinstance(content, bytes) or not content:
        raise DocumentError(f"cell {inside[:200]!r} holds no bytes")
    if len(content) > max_file_mib * 2**20:
        raise DocumentError(f"cell {inside[:200]!r} has {len(content) / 2**20:.0f} MiB, over {max_file_mib=:g}")
    return content


def table_rows(
    file: Path, address: str, *, texts: frozenset[str] = frozenset()
) -> Iterator[tuple[int, dict | DocumentError]]:
    """(row, column -> value) in order, media as addresses below `address`; their first bytes under the key None.

    Values are plain Python; null stands nowhere but in lists. Bytes in the columns `texts` are strings. A row with a
    value that cannot be read gives an error in its place. Raises DocumentError when the file breaks off.
    """
    pyarrow, number = load_pyarrow(), 0
    try:
        table = open_table(file)
        for batch in _batches(table):
            for row in _plain_rows(batch, texts):
                if isinstance(row, dict):
                    heads: dict[str, bytes] = {}
                    at = f"{address}::{number}/"
                    row = {k: _addressed(v, at + quote(k, safe=""), heads) for k, v in row.items() if v is not None}
                    row[None] = heads
                yield number, row
                number += 1
        error = getattr(table, "cut", "")
    except (pyarrow.ArrowException, OSError) as caught:
        error = str(caught)[:200]
    if error:
        raise DocumentError(f"row {number} and those after it cannot be read ({error})")


def _plain_rows(batch, texts: frozenset[str]) -> Iterator[dict | DocumentError]:
    """The rows of a batch as Python values, a few at a time; one by one where a value cannot be read."""
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        rows = batch.slice(start, _BATCH_ROWS)
        try:
            found = rows.to_pylist()
        except (ValueError, OverflowError):
            found = [_plain_row(rows.slice(index, 1)) for index in range(rows.num_rows)]
        yield from (_decoded(row, texts) if isinstance(row, dict) else row for row in found)


def _plain_row(rows) -> dict | DocumentError:
    try:
        return rows.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return DocumentError(f"holds a value that cannot be read ({str(error)[:100]})")


def _decoded(row: dict, texts: frozenset[str]) -> dict | DocumentError:
    """The row with the bytes of its columns `texts` as strings."""
    for name in texts & row.keys():
        if isinstance(row[name], bytes):
            try:
                row[name] = row[name].decode("utf-8")
            except UnicodeDecodeError:
                return DocumentError(f"column {name[:100]!r} holds bytes that are not UTF-8 text")
    return row


def _addressed(value, index: str, heads: dict[str, bytes]):
    """A value with its media replaced by their addresses, whose first bytes are noted in `heads`."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            value = value["bytes"]
        elif set(value) <= {"bytes", "path"}:
            return value.get("path")
        else:
            at = f"{index}/"
            return {k: _addressed(v, at + quote(k, safe=""), heads) for k, v in value.items() if v is not None}
    if isinstance(value, bytes):
        heads[index] = value[:16]
        return index
    if isinstance(value, list):
        return [_addressed(inner, f"{index}/{number}", heads) for number, inner in enumerate(value)]
    return value


def open_table(file: Path):
    """A ParquetFile, or the like for Arrow: `schema_arrow` and record batches; kept while the file is unchanged.

    Raises DocumentError for a file that is neither.
    """
    pyarrow = load_pyarrow()
    status = os.stat(file)
    key = (str(file), status.st_size, status.st_mtime_ns)
    if key not in _opened:
        try:
            _opened[key] = pyarrow.parquet.ParquetFile(file) if _is_parquet(file) else _ArrowTable(file)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DocumentError(f"file {file.name!r} is not a complete table ({str(error)[:200]})") from None
        while len(_opened) > 8:
            _opened.popitem(last=False)
    _opened.move_to_end(key)
    return _opened[key]


class _ArrowTable:
    """An Arrow stream or file, mapped: its whole batches, and in `cut` why there are no more."""

    def __init__(self, file: Path):
        pyarrow = load_pyarrow()
        source = pyarrow.memory_map(str(file))
        with open(file, "rb") as stream:
            is_file = stream.read(6) == b"ARROW1"
        reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        self.schema_arrow, self.batches, self.cut = reader.schema, [], ""
        try:
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                # offsets in a hostile file point anywhere
                batch.validate(full=True)
                self.batches.append(batch)
        except (pyarrow.ArrowException, OSError) as error:
            self.cut = str(error)[:200]
        self.num_rows = sum(batch.num_rows for batch in self.batches)


def num_rows(file: Path) -> int:
    """Rows of a table, by its own account. Raises DocumentError when it cannot be opened."""
    table = open_table(file)
    return table.num_rows if isinstance(table, _ArrowTable) else table.metadata.num_rows


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(4) == b"PAR1"


def _batches(table) -> Iterator:
    if isinstance(table, _ArrowTable):
        return iter(table.batches)
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        _check_size(sum(group.column(index).total_uncompressed_size for index in range(group.num_columns)))
    return table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_GROUP_MIB * 2**20:
        raise DocumentError(
            f"a row group of {size / 2**20:.0f} MiB is over {MAX_GROUP_MIB:g} MiB: write the file with a smaller "
            "row_group_size"
        )


def _scalar(table, row: int, column: str):
    """One top-level value as a pyarrow scalar."""
    is_arrow, meta = isinstance(table, _ArrowTable), getattr(table, "metadata", None)
    groups = table.batches if is_arrow else list(map(meta.row_group, range(meta.num_row_groups)))
    for number, group in enumerate(groups):
        if row < group.num_rows:
            return (group.column(column) if is_arrow else _group(table, number, column))[row]
        row -= group.num_rows
    raise DocumentError("the table has fewer rows")


def _group(table, number: int, column: str):
    key = (id(table), number, column)
    if key not in _groups:
        group = table.metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        named = [chunk for chunk in columns if chunk.path_in_schema.split(".")[0] == column]
        if not named:
            raise DocumentError(f"the table has no column {column[:100]!r}")
        _check_size(sum(chunk.total_uncompressed_size for chunk in named))
        # the table is kept beside its column, so that no other can take its identity
        _groups[key] = (table, table.read_row_group(number, columns=[column], use_threads=False).column(0))
        while len(_groups) > 2:
            _groups.popitem(last=False)
    _groups.move_to_end(key)
    return _groups[key][1]
