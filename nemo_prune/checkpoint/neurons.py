"""A neuron, and the order of the network. Imports nothing: the search knows of the package no more."""

from collections.abc import Iterable
from typing import NamedTuple


class Neuron(NamedTuple):
    """One output of a value layer: the canonical name of the layer, and the row of its weight.

    Sorts by name, which is not the order of the network; `union` gives that. A tuple, since a search
    hashes thousands of them for each question, while a GPU waits.
    """

    layer: str
    row: int


TABLE_COLUMNS = ("prompt", "layer", "row", "attribution", "harm", "shared_by")
"""Of the table of neurons, `neuron_table`."""


def is_neuron_table(text: str) -> bool:
    """Whether a text is a table of neurons, or a part of one that another program has written."""
    head = text.lstrip().partition("\n")[0].replace(";", ",").replace("\t", ",")
    return {*TABLE_COLUMNS[:3]} <= {cell.strip().strip('"') for cell in head.split(",")}


def network_order(layer: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    """A sorting key for canonical layer names: down, mid, up; numbers by value, 10 after 2."""
    first, _, _ = layer.partition(".")
    part = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}.get(first, 3)
    return part, tuple((int(p), "") if _is_number(p) else (-1, p) for p in layer.split("."))


def short_name(layer: str) -> str:
    """A value layer, or its cross-attention, as people read it: down_blocks.2.attentions.1.0.

    Without what all of them have in common. Tables, messages, reports and plots have this form; files
    that programs read have the whole name; wherever a layer is given, both will do.
    """
    return layer.replace(".transformer_blocks", "").removesuffix(".to_v").removesuffix(".attn2")


def union(*groups: Iterable[Neuron]) -> tuple[Neuron, ...]:
    """Every neuron of `groups` once, in the order of the network, rows ascending."""
    return tuple(
        sorted(
            {neuron for group in groups for neuron in group},
            key=lambda n: (network_order(n.layer), n.row),
        )
    )


def _is_number(piece: str) -> bool:
    return piece.isascii() and piece.isdigit() and len(piece) < 20
