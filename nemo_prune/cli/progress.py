"""How far long work is: a bar on a terminal, lines in a log; all on standard error."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nemo_prune.cli.console import console, flags
from nemo_prune.cli.failures import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

_EVERY = 60  # seconds at least between two lines of a stage in a log
_BURST = 2.0  # seconds within which prompts that end together count as one


class TimeLeft:
    """The time that is left of a stage; `str` gives it as it is now, -:--:-- while nobody can say.

    Prompts are worked on together, so many end at once after minutes of nothing: a rate of the
    last minutes would jump. It is the mean over the whole stage, and counted down in between.

    total, done: how many there are, None if nobody knows, and how many an earlier run has done.
    """

    def __init__(self, total: int | None, done: int) -> None:
        self._total = math.inf if total is None else total - done
        self._done = 0
        self._began = self._last = time.monotonic()
        self._burst = -math.inf  # when the latest one began
        self._settled = self._done, self._last  # before it

    def advance(self, count: int) -> None:
        now = time.monotonic()
        if now >= self._burst + _BURST:
            self._burst, self._settled = now, (self._done, self._last)
        self._done, self._last = self._done + count, now

    def __str__(self) -> str:
        now = time.monotonic()
        over = now >= self._burst + _BURST or self._done == self._total
        done, last = (self._done, self._last) if over else self._settled
        if not done or self._total == math.inf:
            return "-:--:--"
        seconds = (last - self._began) / done * (self._total - done) - (now - last)
        return str(timedelta(seconds=max(0, round(seconds))))


class _Noting:
    """The part of `Progress` that every form has in common."""

    def __init__(self, shown: Console) -> None:
        self._console = shown
        self.noted: list[str] = []

    def note(self, text: str) -> None:
        """Print the line, once: a run that opens a model and its pruned copy notes it for both."""
        text = one_line(flags(text))
        if text in self.noted:
            return
        self.noted.append(text)
        self._say(f"note: {text}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


class BarProgress(_Noting):
    """`Progress` as one bar for the current stage."""

    def __init__(self, bar: "Bar") -> None:
        super().__init__(bar.console)
        self._bar = bar
        self._task: Any = None
        self._left = TimeLeft(0, 0)

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._left = TimeLeft(total, done)
        self._task = self._bar.add_task(name, total=total, completed=done, detail=unit, left=self._left)

    def advance(self, count: int = 1) -> None:
        self._left.advance(count)
        self._bar.advance(self._task, count)

    def detail(self, text: str) -> None:
        self._bar.update(self._task, detail=text)

    def pace(self, text: str) -> None:
        self.detail(text)


class LineProgress(_Noting):
    """`Progress` as plain lines for a log: one as a stage begins, and now and then one while it lasts.

    The first line is held back until something follows: a refusal at the very beginning is to be the
    only line.
    """

    _pending = ""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        self._begin()
        self._name, self._total, self._unit, self._pace = name, total, unit, ""
        self._done = self._shown = done
        self._since = time.monotonic()
        if total is None:
            self._pending = name
        elif total:
            self._pending = f"{name}: {total} {unit if total > 1 else unit.removesuffix('s')}"

    def advance(self, count: int = 1) -> None:
        self._begin()
        self._done += count
        now = time.monotonic()
        if now - self._since < _EVERY:
            return
        if self._total is None:
            self._say(f"{self._name}: {self._done} {self._unit}{self._pace}")
        elif 10 * (self._done - self._shown) >= self._total > self._done:
            self._say(f"{self._name}: {self._done} of {self._total} {self._unit}")
        else:
            return
        self._since, self._shown = now, self._done

    def detail(self, text: str) -> None:  # noqa: ARG002
        """A bar has room for it; a log would be full of it."""
        self._begin()

    def pace(self, text: str) -> None:
        self._pace = f", {text}"

    def note(self, text: str) -> None:
        self._begin()
        super().note(text)

    def _begin(self) -> None:
        if self._pending:
            self._say(self._pending)
            self._pending = ""


def columns() -> tuple["ProgressColumn", ...]:
    """What a bar shows: name, bar, how many of how many, detail, time left."""
    from rich import progress as bars

    return (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[detail]}"),
        bars.TextColumn("{task.fields[left]}"),
    )


@contextmanager
def progress(quiet: bool) -> Iterator[BarProgress | LineProgress]:
    """Progress on standard error: a bar on a terminal, else lines; only notes if quiet."""
    from rich import progress as bars  # not needed by verbs that only print a table

    shown = console()
    # Not `is_terminal` alone: with FORCE_COLOR a file would get every redrawing of the bar.
    if not (quiet or (shown.is_terminal and shown.file.isatty())):
        yield LineProgress(shown)
        return
    with bars.Progress(*columns(), console=shown, transient=True, disable=quiet) as bar:
        yield BarProgress(bar)
