"""The paper's schedule of candidate sets (D1 and D2 of "Finding NeMo", section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_prune.checkpoint.neurons import Neuron

THETA_START = 5.0
THETA_STEP = 0.25
LAST_RUNG = 16  # theta = 1, k = 16: the paper's ladder ends here
THETA_END = THETA_START - THETA_STEP * LAST_RUNG


@dataclass(frozen=True)
class Ladder:
    """The nested candidate sets S(theta, k) of D1/D2, from theta = 5, k = 0 to theta = 1, k = 16.

    z: layer name -> |a - mean| / std of each of its neurons, layers in network order, where a is
        the mean over tokens of |value layer output| (the statistics come from ordinary prompts).
        NaN (a neuron without spread) never exceeds a bound.
    activation: layer name -> a itself, same layers and lengths.
    top_k: whether the k largest of each layer belong to it, as in the paper, or unusual ones alone.

    Raises ValueError if the two do not describe the same layers.
    """

    z: Mapping[str, Sequence[float]]
    activation: Mapping[str, Sequence[float]]
    top_k: bool = True
    order: tuple[Neuron, ...] = field(init=False, repr=False, compare=False)
    """The neurons of the last rung in network order: layer by layer, row by row."""
    _entry: dict[Neuron, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.z) != list(self.activation):
            raise ValueError("z scores and activations name different layers")
        entry: dict[Neuron, int] = {}
        for layer, scores in self.z.items():
            activation = self.activation[layer]
            if len(scores) != len(activation):
                raise ValueError(f"z scores and activations of {layer} differ in length")
            smallness = [-abs(a) for a in activation]
            largest = sorted(range(len(scores)), key=smallness.__getitem__)
            rank = {row: place for place, row in enumerate(largest, start=1)}
            for row, score in enumerate(scores):
                rung = min(_first_rung_below(abs(score)), rank[row] if self.top_k else LAST_RUNG + 1)
                if rung <= LAST_RUNG:
                    entry[Neuron(layer, row)] = rung
        object.__setattr__(self, "_entry", entry)
        object.__setattr__(self, "order", tuple(entry))

    def rung(self, i: int) -> frozenset[Neuron]:
        """S(theta = 5 - 0.25 i, k = i): every |z| > theta, and each layer's k largest |a|."""
        return frozenset(neuron for neuron, first in self._entry.items() if first <= i)

    def entering(self) -> list[list[Neuron]]:
        """For each rung the neurons that it adds to the one before."""
        added: list[list[Neuron]] = [[] for _ in range(LAST_RUNG + 1)]
        for neuron, first in self._entry.items():
            added[first].append(neuron)
        return added

    def of(self, i: int, layer: str) -> frozenset[Neuron]:
        """Those of rung i that lie in one layer."""
        return frozenset(neuron for neuron in self.rung(i) if neuron.layer == layer)

    def listed(self, i: int, layer: str) -> list[Neuron]:
        """Rung i of one layer as the authors' code lists it: the unusual rows, then the k largest.

        Unusual rows ascending, the largest falling by |a|; a row that is both stands in both places.
        """
        unusual = [row for row, z in enumerate(self.z[layer]) if abs(z) > self.theta(i)]
        activation = self.activation[layer]
        largest = sorted(range(len(activation)), key=lambda row: -abs(activation[row]))
        largest = largest[: i if self.top_k else 0]
        return [Neuron(layer, row) for row in (*unusual, *largest)]

    def theta(self, i: int) -> float:
        """The bound on |z| at rung i, in standard deviations."""
        return THETA_START - THETA_STEP * i

    def suspicion(self, neuron: Neuron) -> float:
        """|z| of a neuron: how far out of the ordinary this prompt drives it (NaN counts as 0)."""
        score = abs(self.z[neuron.layer][neuron.row])
        return 0.0 if math.isnan(score) else score

    def in_network_order(self, neurons: Collection[Neuron]) -> tuple[Neuron, ...]:
        """Candidates sorted as the network runs them (names alone do not sort that way)."""
        return tuple(neuron for neuron in self.order if neuron in neurons)


def _first_rung_below(score: float) -> int:
    """The first rung whose theta lies below the score; past the last one if none does."""
    rungs = range(LAST_RUNG + 1)
    return next((i for i in rungs if score > THETA_START - THETA_STEP * i), LAST_RUNG + 1)
