"""The methods that can be compared: their names, and what each of them must be able to do.

A method finds something for a prompt (its state), then draws pictures with it. The table of names
imports no torch, so that a mistyped one is refused before any model is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nemo_prune.errors import OptionError, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nemo_prune.compare.bench import Bench

State = dict[str, Any]
"""What a method found for one prompt, or for the whole list; plain JSON, without any prompt's text.

Always: "samples" (denoiser samples that finding it took, a backward pass counted as two more; of a
state that builds on another's, what that took too), "seconds", "notes" (lines for people). Of methods
that switch outputs of layers off: "sets" (a list of {module: [channels]}; pictures take them in turn)
and "factor" (what those outputs are multiplied by). "stages": seconds by stage, where there are
several.
"calibrating": seconds and samples spent on what is ordinary to the model, which the others do not hold.
"""


class Method(Protocol):
    """One method.

    name: what users type. title: what tables show. source: the paper and its section.
    whole_list: its state is one for all prompts, kept under None; `prepare` ignores which it is given.
    unet_only: it is not defined for transformers (PixArt).
    """

    name: str
    title: str
    source: str
    whole_list: bool
    unet_only: bool

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        """Find what the method needs for a prompt; expensive where it is a search.

        Ctrl-C ends it with KeyboardInterrupt; the model is then as before.
        """

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures, uint8 `[n, height, width, 3]`.

        prompt: the one that the state is of, or an ordinary one: what is switched off stays off; what
            is done while drawing (`wen`, `somepalli-...`, `ren`) is done for this prompt afresh.
            `bench.samples` counts what that takes.
        """


@dataclass(frozen=True)
class Entry:
    """A method by name: where its class is, and what that is made with; the rest as `Method` has it."""

    name: str
    title: str
    source: str
    made_by: str
    groups: tuple[str, ...] = ()
    whole_list: bool = False
    unet_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Method:
        module, _, kind = self.made_by.partition(":")
        made: Method = getattr(importlib.import_module(f"nemo_prune.compare.{module}"), kind)(
            name=self.name,
            title=self.title,
            source=self.source,
            whole_list=self.whole_list,
            unet_only=self.unet_only,
            **self.arguments,
        )
        return made


UNPRUNED = "none"
"""The method that all others are compared with."""
_NEMO = "Hintersdorf et al., Finding NeMo, NeurIPS 2024"

_ABLATED = f"{_NEMO}, ablations; the paper's procedure by group testing"
_FACTORS = {"0.75": 0.75, "0.5": 0.5, "0.25": 0.25, "0": 0.0, "minus-1": -1.0}
_SOMEPALLI = "Somepalli et al., arXiv 2305.20086, random token addition"

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(UNPRUNED, "unpruned", "the model as it is", "rows:Unpruned", ("baselines",)),
        Entry("nemo", "ours, own neurons", f"{_NEMO}; searched and confirmed as prune does",
              "searched:Nemo"),
        Entry("nemo-union", "ours, all prompts' neurons", f"{_NEMO}; as in a pruned file",
              "searched:Nemo", whole_list=True),
        Entry("literal", "the paper's procedure", f"{_NEMO}, section 3.2", "procedure:Procedure",
              arguments={"literal": True}),
        Entry("random", "random neurons", f"{_NEMO}, table 1: as many in each layer as nemo",
              "rows:RandomRows", ("baselines",)),
        Entry("wen", "embedding adjusted", "Wen et al., arXiv 2407.21720, mitigation", "wen:Wen",
              ("baselines",), unet_only=True),
        *(Entry(f"somepalli-{count}", f"+{count} random token{'s' if count > 1 else ''}", _SOMEPALLI,
                "tokens:RandomTokens", ("baselines",), arguments={"count": count})
          for count in (1, 4, 10)),
        Entry("ren", "attention rescaled", "Ren et al., arXiv 2403.11052, mitigation", "ren:Rescaled",
              ("baselines",), unet_only=True),
        Entry("ffn-wanda", "feed-forward weights", "ConceptPrune, by Wanda's score", "wanda:FeedForward",
              ("baselines",), whole_list=True, unet_only=True),
        Entry("keys", "keys, same z-scores", f"{_NEMO}, appendix C.8, with its own search on the keys",
              "procedure:Procedure", ("baselines",), arguments={"place": "to_k"}),
        Entry("conv", "half a down block's channels", f"{_NEMO}, appendix C.8",
              "channels:RandomChannels", ("baselines",), unet_only=True),
        Entry("gradient-free", "ablated: nothing", _ABLATED, "procedure:Procedure", ("ablations",)),
        *(Entry(f"threshold-{name}", f"threshold: {title}", _ABLATED, "procedure:Procedure",
                ("ablations",), arguments={"deviations": deviations})
          for name, title, deviations in (("low", "mean - 1 sd", -1.0), ("mean", "mean", 0.0),
                                          ("high", "mean + 2 sd", 2.0))),
        Entry("no-top-k", "without the k largest", _ABLATED, "procedure:Procedure", ("ablations",),
              arguments={"top_k": False}),
        Entry("no-refinement", "without refinement", _ABLATED, "procedure:Procedure", ("ablations",),
              arguments={"refine": False}),
        *(Entry(f"blocks-{part}", f"{part} block{'s' if part != 'mid' else ''} alone", _ABLATED,
                "procedure:Procedure", ("ablations",), unet_only=True, arguments={"layers": part})
          for part in ("down", "mid", "up")),
        *(Entry(f"scale-{name}", f"factor {factor:g}", f"{_NEMO}, ablations; the neurons of nemo",
                "procedure:Scaled", ("ablations",), arguments={"factor": factor})
          for name, factor in _FACTORS.items()),
    )
}  # fmt: skip
"""By name, in the order of tables."""

GROUPS = ("all", *dict.fromkeys(group for entry in ENTRIES.values() for group in entry.groups))
"""Names that stand for several methods."""


def chosen(names: Iterable[str] | None, asked: str = "methods") -> list[str]:
    """The names of methods that `names`, of methods and groups, stand for, in the order of tables.

    None: the default, which is "all". asked: the option that names them. Raises OptionError for a
    name that there is not, with the nearest.
    """
    wanted: set[str] = set()
    for name in ("all",) if names is None else names:
        if name == "all":
            wanted |= ENTRIES.keys()
        elif name in GROUPS:
            wanted |= {entry.name for entry in ENTRIES.values() if name in entry.groups}
        elif name in ENTRIES:
            wanted.add(name)
        else:
            known = [*ENTRIES, *GROUPS]
            alike = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            nearest = f"did you mean {alike[0]}? " if alike else ""
            raise OptionError(
                f"{option(asked)} {ascii(name)[1:-1]}: unknown; {nearest}there are {', '.join(known)}"
            )
    if not wanted:
        raise OptionError(f"{option(asked)}: names none; there are {', '.join([*ENTRIES, *GROUPS])}")
    return [name for name in ENTRIES if name in wanted]


def methods(names: Iterable[str] | None = None) -> list[Method]:
    """The methods of these names and groups, in the order of tables; raises as `chosen`."""
    return [ENTRIES[name].make() for name in chosen(names)]
