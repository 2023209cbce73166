"""Everything that can go wrong, as one small tree.

    NemoPruneError
    ├── OptionError        an option that cannot be honoured here (no CUDA device, unknown layer)
    ├── CheckpointError    the model file: missing, damaged, or of a kind the method does not apply to
    ├── PromptFileError    the prompt file: missing, empty, not UTF-8, no caption column
    ├── ManifestError      the manifest: damaged, or made for other layers than the model has
    ├── UndoError          the undo file: damaged, or not the one of this model
    ├── CalibrationError   the calibration prompts or file
    ├── OutputError        the place to write to: exists, missing folder, read-only, no space
    ├── WorkerError        workers that ended again and again
    └── Interrupted        the user stopped the search; carries the prompts that were finished

Every message is one line that names the file and says what to do. Messages speak of options by their
names in Python; the command line shows the same names as its own flags (`rendered`), and turns an
error into an exit code (2, and 130 for Interrupted), in one place.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_prune.checkpoint.manifest import Manifest


# Private-use characters around an option's name: no text of a user's holds them by accident.
_OPTION = re.compile("\ue000(\\w+)\ue001")


def option(name: str) -> str:
    """An option's name for a message, e.g. `option("text_encoder")`; see `rendered`."""
    return f"\ue000{name}\ue001"


def rendered(text: str, show: Callable[[str], str] = str) -> str:
    """`text` with every `option` in it as `show` writes its name; by default the name itself."""
    return _OPTION.sub(lambda found: show(found[1]), text)


class NemoPruneError(Exception):
    """Base of every error that nemo-prune raises on purpose.

    `str` gives the message for users of the library; `message` is the same before `rendered`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return rendered(self.message)


class OptionError(NemoPruneError):
    """An option that cannot be honoured on this machine or with this model."""


class CheckpointError(NemoPruneError):
    """A model file that cannot be read, or to which the method does not apply."""


class PromptFileError(NemoPruneError):
    """A prompt file that holds no usable prompts."""


class ManifestError(NemoPruneError):
    """A manifest that is damaged or does not fit the model."""


class UndoError(NemoPruneError):
    """An undo file that is damaged or belongs to another model."""


class CalibrationError(NemoPruneError):
    """Calibration prompts that cannot give a threshold."""


class OutputError(NemoPruneError):
    """An output that cannot be written, or would overwrite something."""


class WorkerError(NemoPruneError):
    """Workers, processes that share the prompts, that ended again and again."""


class Interrupted(NemoPruneError):
    """The user stopped the search; `manifest` holds the prompts that were finished."""

    def __init__(self, manifest: "Manifest", finished: int) -> None:
        super().__init__(f"interrupted after {finished} of {len(manifest.prompts)} prompts")
        self.manifest = manifest
