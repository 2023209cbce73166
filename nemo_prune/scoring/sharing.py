"""How an engine's work is shared: what is asked of others who hold the same model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from nemo_prune.scoring.engine import Engine

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Work = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]
"""Items -> the place and the result of each, as it is finished. It may hold an engine, which in another
process is that one's own, and then all else that it holds must be picklable."""


class Workers(Protocol):
    """Others who hold the same model, see `Engine.each`."""

    count: int

    def each(
        self,
        work: Work,
        items: Sequence[Any],
        on_done: Callable[[int, Any], None],
        numbers: Sequence[int | str],
    ) -> dict[int, Any]:
        """`work` on all items, prompts of these numbers; the results by place."""

    def stream(self, work: Work, groups: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
        """`work` on groups of items, some ahead; the results of each group, in order."""

    def keep(self, value: T) -> "Kept[T]":
        """A value that is sent once, however often work needs it."""

    def close(self) -> None:
        """End them."""


class Kept(Protocol[T_co]):
    """What was kept, for whoever works with it."""

    def get(self) -> T_co:
        """The value."""


@dataclass(frozen=True, eq=False)
class Here(Generic[T]):
    """A value of this process."""

    value: T

    def get(self) -> T:
        return self.value


def share(
    workers: Workers | None,
    work: Work,
    items: Sequence[Any],
    on_done: Callable[[int, Any], None] = lambda _place, _result: None,
    numbers: Sequence[int | str] | None = None,
) -> list[Any]:
    """`work` on every item, by the workers if there are any; the results in order.

    numbers: of the prompts that the items are of, for what is said of them.
    on_done: told of the place and the result of each item as it is finished, in any order.
    """
    found: dict[int, Any] = {}
    if workers:
        found = workers.each(work, items, on_done, numbers or range(len(items)))
    else:
        for place, result in work(items):
            found[place] = result
            on_done(place, result)
    return [found[place] for place in range(len(items))]


def kept(workers: Workers | None, value: T) -> Kept[T]:
    """A value for work that is asked for again and again; workers are sent it once."""
    return workers.keep(value) if workers else Here(value)


_of_process: list["Engine"] = []


def engine_here(place: int) -> "Engine":
    """An engine of a process that works for another."""
    return _of_process[place]


def work_for_another(*engines: "Engine") -> None:
    """Make these the engines of the process."""
    _of_process[:] = engines


def give_up_engines() -> None:
    """Give back the memory of the engines of a process that works for another: it needs them no more."""
    for engine in _of_process:
        engine.model.release()
