"""What a single file's sidecar says of it: the YAML of the same name that A1111 reads beside it.

model.safetensors
model.yaml            model: {params: {parameterization: "v", rescale_betas_zero_snr: true, ...}}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.text import read_text
from nemo_prune.files.trees import in_any_form

_PARAMETERIZATIONS = {"v": "v_prediction", "eps": "epsilon"}
# Of generative-models (SDXL), by the name of the class.
_SCALINGS = {"VScaling": "v_prediction", "EpsScaling": "epsilon"}
_LARGEST = 2**16  # bytes, about a second to read; those of A1111 have some thousand
_ZERO_SNR = ("rescale_betas_zero_snr", "zero_terminal_snr", "zero_snr", "use_ztsnr", "ztsnr")


@dataclass(frozen=True)
class Sidecar:
    """prediction_type: "epsilon", "v_prediction", or None where it does not say.

    zero_snr: it says that the model was trained with a zero terminal signal-to-noise ratio.
    fault: why it cannot be used, as a whole message; None for a sound one.
    """

    prediction_type: str | None = None
    zero_snr: bool = False
    fault: str | None = None


def read_sidecar(model: Path) -> tuple[Path, Sidecar] | None:
    """The sidecar of the file at `model` and what it says; None if there is none."""
    path = in_any_form(model.with_suffix(".yaml"))
    if path == model or not path.is_file():
        return None
    if (size := path.stat().st_size) > _LARGEST:
        return path, Sidecar(
            fault=f"{path}: is too large for a model's settings ({size} bytes); remove it, or give "
            f"{option('prediction_type')}"
        )
    import yaml  # only where it is needed: most models have no sidecar

    try:
        text = read_text(path, CheckpointError, "a model's settings", "the YAML file of the model")
        found = yaml.load(text, _unique_keys(yaml.SafeLoader))
    except CheckpointError as error:
        return path, Sidecar(fault=error.message)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(getattr(error, "problem", None) or error or type(error).__name__)
        return path, Sidecar(
            fault=f"{path}: cannot be read as YAML ({reason}); mend or remove it, or give "
            f"{option('prediction_type')}"
        )
    params = _section(found, "model", "params")
    stated = params.get("parameterization")
    target = _section(params, "denoiser_config", "params", "scaling_config").get("target")
    kind = str(target).rpartition(".")[2]
    if stated is not None and stated not in _PARAMETERIZATIONS:
        return path, Sidecar(
            fault=f"{path}: says that the model predicts {str(stated)[:40]!a}; the noise difference "
            f"is defined for eps and v alone: give such a model, or, if that is wrong, say which with "
            f"{option('prediction_type')}"
        )
    if stated and (scaled := _SCALINGS.get(kind)) and scaled != _PARAMETERIZATIONS[stated]:
        return path, Sidecar(
            fault=f"{path}: contradicts itself: its parameterization is {stated}, its scaling {kind}; "
            f"mend it, or say which with {option('prediction_type')}"
        )
    return path, Sidecar(
        prediction_type=_PARAMETERIZATIONS.get(stated) if stated else _SCALINGS.get(kind),
        zero_snr=any(params.get(name) is True for name in _ZERO_SNR),
    )


def _unique_keys(loader: Any) -> Any:
    """The YAML loader, refusing a key that stands twice in a mapping, where the last would win."""

    class Loader(loader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep) for key, _ in node.value]
            if len(set(map(str, keys))) < len(keys):
                raise ValueError("a key stands twice")
            return super().construct_mapping(node, deep)

    return Loader


def _section(document: object, *keys: str) -> Mapping[str, Any]:
    """The mapping under nested keys; {} if there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}
