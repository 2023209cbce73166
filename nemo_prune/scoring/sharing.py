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
        numbers: Sequence[int],
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


_of_process: list["Engine"] = []


def engine_here() -> "Engine":
    """The engine of a process that works for another."""
    return _of_process[0]


def work_for_another(engine: "Engine") -> None:
    """Make this the engine of the process."""
    _of_process[:] = [engine]
