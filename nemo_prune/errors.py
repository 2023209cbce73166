"""Everything that can go wrong, as one small tree.

    NemoPruneError
    ├── OptionError        an option that cannot be honoured here (no CUDA device, unknown layer)
    ├── CheckpointError    the model file: missing, damaged, or of a kind the method does not apply to
    ├── PromptFileError    the prompt file: missing, empty, not UTF-8, no caption column
    ├── ManifestError      the manifest: damaged, or made for other layers than the model has
    ├── UndoError          the undo file: damaged, or not the one of this model
    ├── CalibrationError   the calibration prompts or file
    ├── OutputError        the place to write to: exists, missing folder, read-only, no space
    └── Interrupted        the user stopped the search; carries the prompts that were finished

Every message is one line that names the file and says what to do. Only the command line turns
an error into an exit code (2, and 130 for Interrupted), in one place.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_prune.checkpoint.manifest import Manifest


class NemoPruneError(Exception):
    """Base of every error that nemo-prune raises on purpose."""


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


class Interrupted(NemoPruneError):
    """The user stopped the search; `manifest` holds the prompts that were finished."""

    def __init__(self, manifest: "Manifest", finished: int) -> None:
        super().__init__(f"interrupted after {finished} of {len(manifest.prompts)} prompts")
        self.manifest = manifest
