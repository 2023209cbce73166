"""The whole job on the checkpoint that comes with the package, with a report.

Imports torch only to run it.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_prune.checkpoint.manifest import write_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError, OutputError, option
from nemo_prune.files.prompts import read_prompts
from nemo_prune.model.configs import complete_folder

if TYPE_CHECKING:
    from nemo_prune.options import Progress

DATA = Path(str(files("nemo_prune") / "data" / "demo"))
CHECKPOINT = DATA / "demo.safetensors"
_IMAGES, _STEPS, _ORDINARY_PROMPTS = 2, 20, 8


def planted() -> dict[str, Any]:
    """Caption -> {"name", "kind", "neurons", "target"}: the truth that training planted.

    "target" is the picture's file under `targets/`; "neurons" is empty for natural memorization.
    """
    found: dict[str, Any] = json.loads((DATA / "planted.json").read_text(encoding="utf-8"))
    return found


def precision(caption: str, neurons: tuple[Neuron, ...]) -> float | None:
    """Which part of the neurons found was planted for this caption; None if none was found."""
    truth = {Neuron(n["layer"], n["row"]) for n in planted()[caption]["neurons"]}
    return sum(n in truth for n in neurons) / len(neurons) if neurons else None


def run_demo(folder: Path, progress: "Progress") -> dict[str, Any]:
    """Prune the demo checkpoint into a new folder; return the job's summary with a "demo" part.

    Raises OutputError if the folder exists or cannot be made, CheckpointError without checkpoint.
    """
    if not CHECKPOINT.exists():
        raise CheckpointError(
            f"{CHECKPOINT}: the demo checkpoint is missing; install nemo-prune with its data"
        )
    try:
        folder.mkdir()
    except FileExistsError:
        raise OutputError(
            f"{folder}: exists already; remove it, or give another {option('folder')}"
        ) from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    from nemo_prune.localize import prune as pruning
    from nemo_prune.localize.localize import localize
    from nemo_prune.options import Options, Writing
    from nemo_prune.report.inputs import inputs_of_run
    from nemo_prune.report.likeness import open_likeness
    from nemo_prune.report.verify import verify

    checkpoint = recognize(CHECKPOINT)
    prompts = read_prompts(DATA / "memorized.txt").texts
    heldout = read_prompts(DATA / "ordinary-heldout.txt").texts[:_ORDINARY_PROMPTS]
    calibration = _calibration()
    ordinary = None if calibration else read_prompts(DATA / "ordinary.txt").texts
    options = Options(calibration=calibration)
    found = localize(checkpoint, prompts, options, progress, calibration_prompts=ordinary)
    pruned = folder / "clean.safetensors"
    written = pruning.write(found, Writing(pruned))
    found = pruning.check(found, pruned, prompts, progress)
    write_manifest(found.manifest, folder / "manifest.json")
    _write_configs(folder / "config")
    inputs = inputs_of_run(found, pruned, prompts, heldout, "ordinary-heldout.txt")
    verified = verify(inputs, open_likeness(), _picture_settings(prompts), progress)
    verified.data["command"] = shlex.join(["nemo-prune", "demo", "--folder", str(folder)])
    verified.save(folder / "report.html")
    rates = [
        rate
        for caption, record in zip(prompts, found.manifest.prompts, strict=True)
        if (rate := precision(caption, record.neurons)) is not None
    ]
    return pruning.summary(found, written) | {"demo": demo_part(rates, verified.data)}


def _calibration() -> Path | None:
    """What `nemo-prune calibrate` says of the captions of ordinary.txt, where fp32 is what runs."""
    import torch

    from nemo_prune.model.devices import pick_device, pick_dtype

    path = DATA / "calibration.safetensors"
    fits = pick_dtype(pick_device("auto"), "auto") == torch.float32
    return path if fits and path.is_file() else None


def demo_part(rates: Sequence[float], data: Mapping[str, Any]) -> dict[str, Any]:
    """The result's "demo" part, plain JSON; None where no pictures were compared.

    rates: the precision of each caption for which neurons were found; data: of a `Report`.
    """
    from nemo_prune.report.verdict import pictures_near

    before, after = (pictures_near(data, when) for when in ("near_before", "near_after"))
    return {
        "precision": sum(rates) / max(1, len(rates)),
        "target_similarity_before": _mean(data["prompts"], "target_before"),
        "target_similarity_after": _mean(data["prompts"], "target_after"),
        "target_similarity_unrelated": _mean(data["prompts"], "target_unrelated"),
        "pictures_near_target_before": before[0] if before else None,
        "pictures_near_target": after[0] if after else None,
        "ordinary_similarity": _mean(data["ordinary"], "before_after"),
        "drift_ratio": data["drift"]["ratio"],
        "pictures_skipped": data["pictures"].get("skipped"),
    }


def _picture_settings(prompts: tuple[str, ...]) -> Any:
    from nemo_prune.report.gallery import PictureSettings

    truth = planted()
    targets = {i: DATA / "targets" / truth[caption]["target"] for i, caption in enumerate(prompts)}
    there = {i: path for i, path in targets.items() if path.is_file()}
    return PictureSettings(images=_IMAGES, steps=_STEPS, targets=there)


def _write_configs(folder: Path) -> None:
    import torch

    from nemo_prune.model.loading import load_pipeline

    pipeline = load_pipeline(recognize(CHECKPOINT), device=torch.device("cpu"), dtype=torch.float32)
    write_config_folder(folder, pipeline.text_encoder, pipeline.unet, pipeline.vae)


def _mean(entries: list[dict[str, Any]], measure: str) -> float | None:
    """The mean MS-SSIM over all entries of which pictures were compared; None if there are none."""
    found: list[float] = [
        entry["pictures"][measure]["ms_ssim"]
        for entry in entries
        if measure in (entry["pictures"] or {})
    ]
    return round(sum(found) / len(found), 3) if found else None


def write_config_folder(folder: Path, text: Any, unet: Any, vae: Any) -> Path:
    """Write the folder that `StableDiffusionPipeline.from_single_file` takes as `config`.

    Args:
        folder: must not exist yet.
        text: the loaded models of a Stable Diffusion 1 whose settings it describes.
        unet: likewise.
        vae: likewise.

    Returns:
        `folder`, which holds configs and tokenizer but no weights.
    """
    return complete_folder("sd1", component_configs(text, unet, vae), folder)


def component_configs(text: Any, unet: Any, vae: Any) -> dict[str, dict[str, Any]]:
    """Each loaded model's whole config, as a diffusers folder keeps it."""
    return {
        "unet": json.loads(unet.to_json_string()),
        "vae": json.loads(vae.to_json_string()),
        "text_encoder": json.loads(text.config.to_json_string(use_diff=False)),
    }


def demo_lines(folder: Path, demo: dict[str, Any]) -> list[str]:
    """What the demo showed and left in its folder, in lines for people."""
    lines = [f"precision against the planted neurons: {demo['precision']:.2f}"]
    if demo["target_similarity_before"] is not None:
        lines.append(
            f"similarity to the training pictures (MS-SSIM): {demo['target_similarity_before']} before, "
            f"{demo['target_similarity_after']} after; unrelated pictures: "
            f"{demo['target_similarity_unrelated']}"
        )
    else:
        why = f": {demo['pictures_skipped']}" if demo["pictures_skipped"] else ""
        lines.append(f"no pictures were compared with training pictures{why}")
    if demo["ordinary_similarity"] is not None:
        lines.append(f"ordinary captions, same seed before and after: {demo['ordinary_similarity']}")
    if demo["drift_ratio"] is not None:
        lines.append(
            f"drift of ordinary captions' cross-attention outputs: {demo['drift_ratio']:.2f} times that "
            f"of as many random neurons"
        )
    return [
        *lines,
        f"{folder / 'report.html'}: pictures before and after, side effects; look at it",
        f"{folder / 'clean.safetensors'}: the pruned checkpoint",
        f"{folder / 'config'}: its config folder, for diffusers' from_single_file(..., config=)",
        f"{folder / 'manifest.json'}: which neurons, and why",
    ]
