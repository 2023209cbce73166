"""What became of a prompt, in one word or two."""

from enum import StrEnum


class Status(StrEnum):
    """A prompt's status; the values stand in manifests, reports and JSON."""

    SUPPRESSED = "suppressed"
    REPLICATED = "replicated"
    STILL_MEMORIZED = "still memorized"
    NOT_REMOVABLE = "not removable"
    NOT_MEMORIZED = "not memorized"
    NOT_SEARCHED = "not searched"
