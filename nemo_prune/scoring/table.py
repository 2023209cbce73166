"""The table of a stream as it grows, and the journal beside it from which a run can go on.

It is called NAME.partial until it is whole. Beside it NAME.journal says how far it is: where the lists
were read to, hashes of the prompts so far, and the highest scores. What ends the run, also a fault in a
list, leaves both.
"""

import base64
import csv
import heapq
import io
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_prune.errors import NemoPruneError, OutputError, option
from nemo_prune.files.atomic import beside, check_place, new_file, take_name
from nemo_prune.files.streams import Block, Position, changed_since, marks
from nemo_prune.options import Progress
from nemo_prune.scoring.journal import Journal, journal_path, refuse_live

TOP = 1000
"""Prompts whose scores are the highest, which the result names; the table has all."""
_EVERY = 5.0  # seconds between two entries of the journal: what a crash costs
_AS_PARQUET = 50_000  # rows at once


@dataclass(frozen=True)
class Table:
    """Where rows go: a file .csv or .parquet, and how it is written."""

    path: Path
    overwrite: bool = False
    resume: bool = False

    @property
    def partial(self) -> Path:
        return beside(self.path, ".partial")

    @property
    def journal(self) -> Path:
        return journal_path(self.path)

    def check(self) -> None:
        """Refuse places that cannot be written, before anything is read. Raises OutputError."""
        suffix = self.path.suffix.lower()
        if suffix not in (".csv", ".parquet"):
            raise OutputError(f"{self.path}: is a table; name it .csv or .parquet")
        if suffix == ".parquet":
            try:
                import pyarrow.parquet  # noqa: F401
            except ImportError:
                raise OutputError(
                    f"{self.path}: Parquet is written with pyarrow, which is not installed; "
                    f"pip install 'nemo-prune[parquet]', or name it .csv"
                ) from None
        check_place(self.path, self.overwrite)
        for path in (self.journal, self.partial):
            if path.is_dir():
                raise OutputError(f"{path}: is a folder where a file is to be written; move it away")
        left = [path for path in (self.journal, self.partial) if os.path.lexists(path)]
        if left and not self.resume:
            refuse_live(self.journal)
            raise OutputError(
                f"{left[0]}: an earlier run was not finished; pass {option('resume')} to go on, "
                f"or remove {' and '.join(path.name for path in left)}"
            )


@dataclass
class Streamed:
    """What was found in a stream; see `streamed_summary`.

    scored: distinct prompts; memorized: those above the gate. early: clear before all seeds; truncated:
    longer than the model reads. fewest, most: seeds that any of them took.
    top: rows of the highest scores, highest first, and texts, their prompts.
    """

    scored: int = 0
    memorized: int = 0
    early: int = 0
    truncated: int = 0
    fewest: int = 0
    most: int = 0
    bytes: int = 0
    above: bool = False
    alike: bool = True
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int, dict[str, Any], str]] = []
        self.fresh: list[tuple[dict[str, Any], str]] = []  # since the last entry of the journal

    def keep(self, row: dict[str, Any], text: str) -> None:
        """Keep the row if its score is among the highest."""
        entry = (row["score"], -row["index"], row, text)
        if len(self._heap) < TOP:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)
        else:
            return
        self.fresh.append((row, text))

    @property
    def top(self) -> list[dict[str, Any]]:
        return [row for _, _, row, _ in sorted(self._heap, key=lambda one: one[:2], reverse=True)]

    @property
    def texts(self) -> list[str]:
        return [text for _, _, _, text in sorted(self._heap, key=lambda one: one[:2], reverse=True)]


class Rows:
    """The table as it grows, and the journal beside it; `found` and `keys` are of an earlier run."""

    def __init__(self, table: Table, seeds: int, run: Mapping[str, str], paths: Sequence[Path]) -> None:
        self._table, self._seeds, self._paths = table, seeds, paths
        self.found, self.keys = Streamed(), array("Q")
        self._fresh = array("Q")
        self._number = 0
        self._last = time.monotonic()
        self._file: Any = None
        there = table.journal.exists()
        self._journal = Journal.open(table.journal, run, resume=table.resume)
        try:
            if there:
                self._take_up()
            self._open()
            self._settle()
        except BaseException:
            self._journal.close()
            if not there:
                table.journal.unlink(missing_ok=True)
            raise

    def _take_up(self) -> None:
        entries, known = self._journal.entries, []
        for number in sorted(map(int, entries)):
            value = entries[str(number)]
            self.keys.frombytes(base64.b64decode(value["keys"]))
            for row, text in value["top"]:
                self.found.keep(row, text)
            kept, known = value["found"], value["marks"]
            self._number = number + 1
        if self._number:
            for name, one in kept.items():
                setattr(self.found, name, Position(**one) if name == "position" else one)
            if changed := changed_since(self._paths, self.found.position, known):
                raise OutputError(
                    f"{changed}: is not the list that the earlier run read; give it, or remove "
                    f"{self._table.partial} and {self._table.journal} to begin anew"
                )
        entries.clear()
        self.found.fresh.clear()

    def _open(self) -> None:
        path = self._table.partial
        try:
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            if self.found.bytes > os.fstat(self._file.fileno()).st_size:
                raise OutputError(
                    f"{path}: is shorter than its journal says; remove both, and begin anew"
                )
            self._file.truncate(self.found.bytes)
            self._file.seek(self.found.bytes)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); check the path") from None

    def add(self, rows: list[dict[str, Any]], block: Block) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not self.found.bytes:
            writer.writerow(self._columns(rows[0]))
        for row in rows:
            of = row["seed_scores"]
            cells = [value for name, value in row.items() if name != "seed_scores"]
            writer.writerow([*cells, *of, *[""] * (self._seeds - len(of))])
        content = text.getvalue().encode("utf-8", "backslashreplace")
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OutputError(
                f"{self._table.partial}: cannot be written ({error.strerror}); free room"
            ) from None
        self.found.bytes += len(content)
        self._fresh.extend(block.keys)
        self._settle()
        if time.monotonic() - self._last >= _EVERY:
            self._note()

    def _columns(self, row: dict[str, Any]) -> list[str]:
        names = [name for name in row if name != "seed_scores"]
        return [*names, *(f"seed_{seed}" for seed in range(self._seeds))]

    def _settle(self) -> None:
        """What is whole now: an interrupt may come when of a block only a part is noted."""
        self._whole = asdict(self.found), len(self._fresh), len(self.found.fresh)

    def _note(self) -> None:
        """An entry of the journal, once the rows it speaks of are on the disk."""
        found, keys, top = self._whole
        os.fsync(self._file.fileno())
        value = {
            "found": found,
            "keys": base64.b64encode(self._fresh[:keys].tobytes()).decode(),
            "top": self.found.fresh[:top],
            "marks": marks(self._paths, Position(**found["position"])),
        }
        self._journal.add(str(self._number), value)
        self._journal.entries.clear()  # they would grow with the list
        self._number += 1
        self.found.fresh = []
        self._fresh = array("Q")
        self._settle()
        self._last = time.monotonic()

    def close(self) -> None:
        """Keep how far it is; after `finish` there is nothing to keep."""
        if self._file is None or self._file.closed:
            return
        with suppress(OSError, NemoPruneError):
            if self._whole[1]:
                self._note()
        self._file.close()
        self._journal.close()
        if not self._number:  # nothing was scored
            self._table.partial.unlink(missing_ok=True)
            self._table.journal.unlink(missing_ok=True)

    def finish(self, progress: Progress) -> None:
        """Give the table its name; raises OutputError."""
        self._settle()
        self._note()
        self._file.close()
        partial, out = self._table.partial, self._table.path
        try:
            if out.suffix.lower() == ".parquet":
                progress.stage("writing Parquet", self.found.scored, "prompts")
                _as_parquet(partial, out, self._table.overwrite, progress)
                partial.unlink()
            else:
                take_name(partial, out, self._table.overwrite)
                partial.unlink(missing_ok=True)  # of a hard link
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
        self._journal.close()
        self._table.journal.unlink(missing_ok=True)


def _as_parquet(source: Path, out: Path, overwrite: bool, progress: Progress) -> None:
    """A table of `Rows` as Parquet, some rows at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kinds: dict[str, Any] = {
        "index": int, "seeds": int, "line": int, "score": float, "noise_norm": float,
        "memorized": "True".__eq__, "lower_bound": "True".__eq__, "truncated": "True".__eq__,
        "label": lambda cell: None if cell == "" else cell == "True", "text": str, "file": str,
    }  # fmt: skip
    with source.open(encoding="utf-8", newline="") as file, new_file(out, overwrite) as binary:
        rows = csv.reader(file)
        names = next(rows)
        of = [kinds.get(name, lambda cell: float(cell) if cell else None) for name in names]
        types = {int: arrow.int64(), str: arrow.string()}
        truths = ("memorized", "lower_bound", "truncated", "label")
        schema = arrow.schema(
            [(name, arrow.bool_() if name in truths else types.get(kind, arrow.float64()))
             for name, kind in zip(names, of, strict=True)]
        )  # fmt: skip
        with parquet.ParquetWriter(binary, schema) as writer:
            while taken := list(islice(rows, _AS_PARQUET)):
                columns = [[convert(row[place]) for row in taken] for place, convert in enumerate(of)]
                writer.write_table(arrow.table(columns, schema=schema))
                progress.advance(len(taken))
