"""Cells of tables: Parquet files and the Arrow files of Hugging Face datasets, by row and column. Needs pyarrow.

    read_cell(file, "12/image")        bytes of the media file in row 12, column `image`; "12/images/3" goes deeper
    table_rows(file, address)          (row, values) one by one, media replaced by such addresses

Media are bytes, or a struct with `bytes`; a struct whose bytes are null stands for the file at its `path`. A cell costs
its column of a whole Parquet row group, of which the last two are kept. `datasets` is not used: it copies a table into
its cache and decodes media. Files are untrusted: Arrow data are validated, and sizes bounded.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from brine.data.document import DocumentError

MAX_GROUP_MIB = 2048.0  # largest column of one Parquet row group that is read, in MiB uncompressed
_BATCH_ROWS = 16


def load_pyarrow():
    """The pyarrow package. Raises DocumentError naming the extra that brings it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DocumentError(
            "Parquet and Arrow files need pyarrow, which is not installed: run with `uv run --extra hf ...`, or "
            "`pip install 'brine-lm[hf]'`"
        ) from None
    return pyarrow


def read_cell(file: Path, inside: str, *, max_file_mib: float) -> bytes:
    """The bytes at `row/column[/field or index ...]` of a table. Raises DocumentError with the reason."""
    pyarrow, cell = load_pyarrow(), f"cell {inside[:200]!r}"
    row, *steps = inside.split("/")
    if not (row.isascii() and row.isdigit() and len(row) < 16) or not steps:
        raise DocumentError(f"{cell} is not of the form row/column")
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
        raise DocumentError(f"{cell} cannot be read ({str(error)[:200]})") from None
    if not isinstance(content, bytes) or not content:
        raise DocumentError(f"{cell} holds no bytes")
    if len(content) > max_file_mib * 2**20:
        raise DocumentError(f"{cell} has {len(content) / 2**20:.0f} MiB, over {max_file_mib=:g}")
    return content


def _scalar(table, row: int, column: str):
    for number, count in enumerate(table.group_rows):
        if row < count:
            return table.column(number, column)[row]
        row -= count
    raise DocumentError("the table has fewer rows")


def table_rows(
    file: Path, address: str, *, texts: frozenset[str] = frozenset()
) -> Iterator[tuple[int, dict | DocumentError]]:
    """(row, column -> value) in order, media as addresses below `address`; their first bytes under the key None.

    Values are plain Python without null outside of lists; bytes in the columns `texts` are strings. A row with a value
    that cannot be read is an error. Raises DocumentError when the file breaks off.
    """
    pyarrow, number = load_pyarrow(), 0
    try:
        table = open_table(file)
        for batch in table.batches():
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for row in _plain_rows(batch.slice(start, _BATCH_ROWS)):
                    yield number, _addressed_row(row, f"{address}::{number}/", texts)
                    number += 1
        error = table.cut
    except (pyarrow.ArrowException, OSError) as caught:
        error = str(caught)[:200]
    if error:
        raise DocumentError(f"row {number} and those after it cannot be read ({error})")


def _plain_rows(rows) -> list[dict | DocumentError]:
    """The rows as Python values; one by one where a value cannot be read."""
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if rows.num_rows == 1:
            return [DocumentError(f"holds a value that cannot be read ({str(error)[:100]})")]
        return [row for index in range(rows.num_rows) for row in _plain_rows(rows.slice(index, 1))]


def _addressed_row(row: dict | DocumentError, address: str, texts: frozenset[str]) -> dict | DocumentError:
    if isinstance(row, DocumentError):
        return row
    heads: dict[str, bytes] = {}
    found: dict = {None: heads}
    for name, value in row.items():
        if name in texts and isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                return DocumentError(f"column {name[:100]!r} holds bytes that are not UTF-8 text")
        if value is not None:
            found[name] = _addressed(value, address + quote(name, safe=""), heads)
    return found


def _addressed(value, address: str, heads: dict[str, bytes]):
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            value = value["bytes"]
        elif set(value) <= {"bytes", "path"}:
            return value.get("path")
        else:
            inner = ((key, each) for key, each in value.items() if each is not None)
            return {key: _addressed(each, f"{address}/{quote(key, safe='')}", heads) for key, each in inner}
    if isinstance(value, bytes):
        heads[address] = value[:16]
        return address
    if isinstance(value, list):
        return [_addressed(each, f"{address}/{number}", heads) for number, each in enumerate(value)]
    return value


def open_table(file: Path):
    """The table in a file, kept while it is unchanged. Raises DocumentError for a file that is none."""
    status = os.stat(file)
    return _open(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _open(file: Path, size: int, mtime_ns: int):
    pyarrow = load_pyarrow()
    with open(file, "rb") as stream:
        head = stream.read(6)
    try:
        return _ParquetTable(file) if head[:4] == b"PAR1" else _ArrowTable(file, is_file=head == b"ARROW1")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DocumentError(f"file {file.name!r} is not a complete table ({str(error)[:200]})") from None


class _ParquetTable:
    """A Parquet file. `group_rows`: rows of each group; `cut`: why there are no more rows."""

    def __init__(self, file: Path):
        self.parquet = load_pyarrow().parquet.ParquetFile(file)
        meta = self.parquet.metadata
        self.schema, self.cut = self.parquet.schema_arrow, ""
        self._groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        self.group_rows = [group.num_rows for group in self._groups]

    def batches(self) -> Iterator:
        for number in range(len(self._groups)):
            self._check_size(number)
        return self.parquet.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)

    def column(self, number: int, name: str):
        return _parquet_column(self, number, name)

    def _check_size(self, number: int, name: str | None = None) -> None:
        columns = [self._groups[number].column(index) for index in range(self._groups[number].num_columns)]
        columns = [each for each in columns if name is None or each.path_in_schema.split(".")[0] == name]
        if not columns and name is not None:
            raise DocumentError(f"the table has no column {name[:100]!r}")
        size = sum(each.total_uncompressed_size for each in columns)
        if not 0 <= size <= MAX_GROUP_MIB * 2**20:
            raise DocumentError(
                f"a row group of {size / 2**20:.0f} MiB is over {MAX_GROUP_MIB:g} MiB: write the file with a smaller "
                "row_group_size"
            )


@functools.lru_cache(maxsize=2)
def _parquet_column(table: _ParquetTable, number: int, name: str):
    table._check_size(number, name)
    return table.parquet.read_row_group(number, columns=[name], use_threads=False).column(0)


class _ArrowTable:
    """An Arrow stream or file, mapped: its whole batches, each a group."""

    def __init__(self, file: Path, *, is_file: bool):
        pyarrow = load_pyarrow()
        source = pyarrow.memory_map(str(file))
        reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        self.schema, self._found, self.cut = reader.schema, [], ""
        try:
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                # offsets in a hostile file point anywhere
                batch.validate(full=True)
                self._found.append(batch)
        except (pyarrow.ArrowException, OSError) as error:
            self.cut = str(error)[:200]
        self.group_rows = [batch.num_rows for batch in self._found]

    def batches(self) -> Iterator:
        return iter(self._found)

    def column(self, number: int, name: str):
        return self._found[number].column(name)


def num_rows(file: Path) -> int:
    """Rows that a table says it has. Raises DocumentError when it cannot be opened."""
    return sum(open_table(file).group_rows)
