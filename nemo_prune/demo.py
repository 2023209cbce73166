"""The main job on the checkpoint that comes with the package, with pictures before and after."""

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_prune.configs import complete_folder
from nemo_prune.errors import CheckpointError, OutputError
from nemo_prune.families import recognize
from nemo_prune.manifest import Neuron, write_manifest
from nemo_prune.prompts import read_prompts

if TYPE_CHECKING:
    from nemo_prune.localization import Progress

DATA = Path(str(files("nemo_prune") / "data" / "demo"))
CHECKPOINT = DATA / "demo.safetensors"
_MEMORIZED_SEEDS, _ORDINARY_SEEDS, _ORDINARY_PROMPTS = (1, 2), (1,), 12


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
            f"{CHECKPOINT}: the demo checkpoint is not in this version; train it with "
            f"python tools/train_demo.py"
        )
    try:
        folder.mkdir()
    except FileExistsError:
        raise OutputError(f"{folder}: exists already; remove it, or give --folder") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    from nemo_prune import pruning
    from nemo_prune.localization import Options, localize

    checkpoint = recognize(CHECKPOINT)
    prompts = read_prompts(DATA / "memorized.txt").texts
    ordinary = read_prompts(DATA / "ordinary.txt").texts
    found = localize(checkpoint, prompts, Options(), progress, calibration_prompts=ordinary)
    pruned = folder / "clean.safetensors"
    written = pruning.write(found, pruned, overwrite=False)
    found = pruning.check(found, pruned, prompts, progress)
    write_manifest(found.manifest, folder / "manifest.json")
    result = pruning.summary(found, written)
    result["demo"] = _pictures(folder, prompts, pruned, progress)
    rates = [
        rate
        for caption, record in zip(prompts, found.manifest.prompts, strict=True)
        if (rate := precision(caption, record.neurons)) is not None
    ]
    result["demo"]["precision"] = sum(rates) / max(1, len(rates))
    result["demo"]["lines"] = _lines(folder, result["demo"])
    return result


def _pictures(
    folder: Path, prompts: tuple[str, ...], pruned: Path, progress: "Progress"
) -> dict[str, Any]:
    import numpy as np
    import torch
    from PIL import Image

    from nemo_prune.loading import load_pipeline
    from nemo_prune.pictures import draw, sheet, similarity

    ordinary = read_prompts(DATA / "ordinary-heldout.txt").texts[:_ORDINARY_PROMPTS]
    progress.stage("drawing pictures", 2 * (len(prompts) + len(ordinary)), "prompts")
    drawn = []
    for path in (CHECKPOINT, pruned):
        pipeline = load_pipeline(
            recognize(path), device=torch.device("cpu"), dtype=torch.float32
        )  # fmt: skip
        drawn.append((
            draw(pipeline, prompts, _MEMORIZED_SEEDS, advance=progress.advance),
            draw(pipeline, ordinary, _ORDINARY_SEEDS, advance=progress.advance),
        ))  # fmt: skip
    parts = pipeline.text_encoder, pipeline.unet, pipeline.vae
    write_config_folder(folder / "config", *parts)
    (before, ordinary_before), (after, ordinary_after) = drawn
    truth = planted()
    targets = []
    for caption in prompts:
        with Image.open(DATA / "targets" / truth[caption]["target"]) as image:
            targets.append(np.asarray(image.convert("RGB")))
    rows = [[targets[i], *before[i], *after[i]] for i in range(len(prompts))]
    sheet(rows).save(folder / "memorized.png")
    pairs = [
        (a, b)
        for left, right in zip(ordinary_before, ordinary_after, strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    sheet([[a for a, _ in pairs], [b for _, b in pairs]]).save(folder / "ordinary.png")

    def to_target(rows: list[Any]) -> float:
        scores = [similarity(p, t) for t, row in zip(targets, rows, strict=True) for p in row]
        return round(sum(scores) / len(scores), 3)

    return {
        "target_similarity_before": to_target(before),
        "target_similarity_after": to_target(after),
        "ordinary_similarity": round(sum(similarity(a, b) for a, b in pairs) / len(pairs), 3),
    }


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


def _lines(folder: Path, demo: dict[str, Any]) -> list[str]:
    return [
        f"precision against the planted neurons: {demo['precision']:.2f}",
        f"similarity to the training pictures (MS-SSIM): {demo['target_similarity_before']} before, "
        f"{demo['target_similarity_after']} after",
        f"ordinary captions, same seed before and after: {demo['ordinary_similarity']}",
        f"{folder / 'clean.safetensors'}: the pruned checkpoint",
        f"{folder / 'config'}: its config folder, for diffusers' from_single_file(..., config=)",
        f"{folder / 'manifest.json'}: which neurons, and why",
        f"{folder / 'memorized.png'}: a row a prompt: training picture, two before, two after",
        f"{folder / 'ordinary.png'}: ordinary captions, above before, below after",
    ]
