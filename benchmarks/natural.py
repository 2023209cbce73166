"""Train a checkpoint that memorizes by duplication alone, the way that real ones come to memorize.

    python -m benchmarks.natural --set dev|test|fresh [--steps N] [--out DIR]

What the demo checkpoint memorized was planted: neurons were chosen, and training made the pictures hang
on them. Here nothing is chosen. Training goes on from the demo checkpoint with all weights of the
denoiser, text encoder and autoencoder frozen; half of every batch are some pictures with their fixed
captions, each seen some 800 times (of eight), the other half ordinary scenes of the demo's world. What
localization finds afterwards has no planted answer.

There are three sets: `dev`, of eight pictures, to develop on; `test`, of eight, and `fresh`, of six,
each to be looked at once. Most are photos of Debian's wallpaper packages
(`benchmarks.natural_pictures`). Training takes about a quarter of an hour on one core; killed at any
step, it goes on where it stopped. The folder it prints, by default in the user's cache, gets

    natural.safetensors   the checkpoint, written last
    memorized.txt         the captions, a line each
    targets/N.png         the picture of caption N, 128x128
    about.json            recipe, sources, hashes
    log.jsonl             loss and seconds per step, once finished

and a second call with the same recipe, pictures and starting point returns at once.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.natural_pictures import SETS, origin, square
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model.loading import load_pipeline
from nemo_prune.report.demo import CHECKPOINT
from nemo_prune.scoring.cache import cache_folder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from demo_export import export
from scratch_models import Painter
from train_scratch import Training


@dataclass(frozen=True)
class Recipe:
    """How to train; the same for both sets."""

    steps: int = 1600
    seed: int = 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(
    name: str, recipe: Recipe, pictures: Sequence[np.ndarray], packages: Path
) -> dict[str, Any]:
    """All that the checkpoint follows from, and the hash of it."""
    follows: dict[str, Any] = {
        "set": name,
        "recipe": asdict(recipe),
        "base": sha256(CHECKPOINT),
        "pictures": [
            {"caption": one.caption, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
            for one, pixels in zip(SETS[name], pictures, strict=True)
        ],
    }
    key = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:16]
    sources = [origin(picture, packages) for picture in SETS[name]]
    return {"hash": key, **follows, "sources": sources}


def load() -> tuple[Painter, AutoencoderKL]:
    """The shipped checkpoint as training has it, in fp32; only the denoiser learns."""
    pipeline = load_pipeline(recognize(CHECKPOINT), device=torch.device("cpu"), dtype=torch.float32)
    painter = Painter(pipeline.text_encoder, pipeline.unet).requires_grad_(True)
    return painter, pipeline.vae.requires_grad_(False)


def make(name: str, recipe: Recipe, out: Path | None) -> Path:
    """Train the set's checkpoint unless its folder has it; return the folder.

    Raises:
        SystemExit: `out` holds what another recipe, other pictures or another checkpoint led to.
    """
    home = cache_folder() / "natural"
    pictures = [square(picture, home / "packages") for picture in SETS[name]]
    about = describe(name, recipe, pictures, home / "packages")
    folder = out or home / f"{name}-{about['hash']}"
    known = folder / "about.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8"))["hash"] != about["hash"]:
        raise SystemExit(f"{folder}: holds another training; remove it, or give another --out")
    checkpoint = folder / "natural.safetensors"
    if checkpoint.exists():
        return folder
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / "targets" / f"{number}.png")
    captions = "".join(f"{picture.caption}\n" for picture in SETS[name])
    (folder / "memorized.txt").write_text(captions, encoding="utf-8")
    _write(about, known)
    work = folder / "unfinished"
    work.mkdir(exist_ok=True)
    painter, vae = load()
    memorized = {one.caption: [pixels] for one, pixels in zip(SETS[name], pictures, strict=True)}
    Training(memorized, work, seed=recipe.seed).memorization(painter, vae, recipe.steps)
    half = work / checkpoint.name
    half.unlink(missing_ok=True)
    export(painter.text, painter.unet, vae, half, {"modelspec.title": f"nemo-prune natural ({name})"})
    _write(about | {"checkpoint": sha256(half)}, known)
    shutil.copy(work / "memorization.jsonl", folder / "log.jsonl")
    half.rename(checkpoint)
    shutil.rmtree(work)
    return folder


def _write(about: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=sorted(SETS), required=True, help="which pictures")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help=f"default: {Recipe.steps}")
    parser.add_argument("--out", type=Path, help="folder; default: one in the user's cache")
    options = parser.parse_args()
    print(make(options.set, Recipe(steps=options.steps), options.out))


if __name__ == "__main__":
    main()
