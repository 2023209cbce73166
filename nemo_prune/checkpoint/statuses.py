"""What became of a prompt, in the words that every output and file uses."""

from enum import StrEnum

GONE = 0.33
"""A picture is gone if less than this part of it is left, as trajectories tell: a third of the way from
unrelated pictures to the memorized one, as for whole pictures. At one half, and at two fifths, pictures
that are recognizably drawn would pass (docs/method.md)."""


class Status(StrEnum):
    """What became of a prompt; equal to its word, so JSON and comparisons take it as text."""

    SUPPRESSED = "suppressed"
    """Memorized before; neither its score nor, where they were judged, its pictures show it now."""
    REPLICATED = "replicated"
    """The score calls it suppressed, and the memorized picture is still drawn."""
    STILL_MEMORIZED = "still memorized"
    """The check of the written file scores it above tau."""
    NOT_REMOVABLE = "not removable"
    """Searched, and still there whatever is switched off, or only with a stated damage."""
    NOT_MEMORIZED = "not memorized"
    """Its score lies below the gate, so it was left alone."""
    NOT_CONFIRMED = "not confirmed"
    """Searched, and the run was stopped before it showed what came of that."""
    NOT_SEARCHED = "not searched"
    """The run was stopped before its turn."""
