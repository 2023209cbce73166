"""What of an audit is finished, kept on the disk where there is a journal."""

from collections.abc import Callable
from typing import Any

from nemo_prune.scoring.journal import Journal


class Finished:
    """Results by name. journal: where they are kept; None: in memory alone."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._found: dict[str, Any] = journal.entries if journal else {}

    def get(self, key: str) -> Any:
        """What was found under this name, None if it was not finished."""
        return self._found.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keep a result: it is on the disk when this returns."""
        if self._journal:
            self._journal.add(key, value)
        self._found[key] = value

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """What was found under this name, or is now, and is kept."""
        if key not in self._found:
            self.add(key, find())
        return self._found[key]

    def close(self) -> None:
        if self._journal:
            self._journal.close()
