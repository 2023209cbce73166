"""nemo-prune: find and zero the value neurons behind memorized pictures in Stable Diffusion.

    model = nemo_prune.open_checkpoint("model.safetensors")
    manifest = nemo_prune.localize(model, ["a caption that draws its training picture"])
    nemo_prune.apply(model, manifest.neurons, "clean.safetensors")

Everything in `__all__` is loaded on first use, so that importing the package costs nothing and loads
no torch. `docs/python.md` has an example of each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nemo_prune.api import Scorer as Scorer
    from nemo_prune.api import apply as apply
    from nemo_prune.api import detect as detect
    from nemo_prune.api import localize as localize
    from nemo_prune.api import masked as masked
    from nemo_prune.api import memorization_scores as memorization_scores
    from nemo_prune.api import open_checkpoint as open_checkpoint
    from nemo_prune.api import read_prompts as read_prompts
    from nemo_prune.api import verify as verify
    from nemo_prune.checkpoint.manifest import Manifest as Manifest
    from nemo_prune.checkpoint.manifest import read_manifest as read_manifest
    from nemo_prune.checkpoint.manifest import write_manifest as write_manifest
    from nemo_prune.checkpoint.neurons import Neuron as Neuron
    from nemo_prune.checkpoint.statuses import Status as Status
    from nemo_prune.errors import NemoPruneError as NemoPruneError
    from nemo_prune.options import Options as Options
    from nemo_prune.options import Progress as Progress

_PLACES = {
    "Manifest": "checkpoint.manifest",
    "NemoPruneError": "errors",
    "Neuron": "checkpoint.neurons",
    "Options": "options",
    "Progress": "options",
    "Scorer": "api",
    "Status": "checkpoint.statuses",
    "apply": "api",
    "detect": "api",
    "masked": "api",
    "memorization_scores": "api",
    "open_checkpoint": "api",
    "read_manifest": "checkpoint.manifest",
    "read_prompts": "api",
    "verify": "api",
    "write_manifest": "checkpoint.manifest",
}
__all__ = [*sorted([*_PLACES, "localize"])]


def __getattr__(name: str) -> Any:
    if name == "localize":  # a package that can be called, so that it and its modules share a name
        return import_module("nemo_prune.localize")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
