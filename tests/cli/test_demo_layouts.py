"""The demo checkpoint in other layouts and dtypes: the same neurons, the same pruned model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import ldm, run, same_weights

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.zeros import model_zeros
from nemo_prune.files.prompts import read_prompts
from nemo_prune.model import hub
from nemo_prune.model.loading import load_model, load_pipeline
from nemo_prune.report.demo import CHECKPOINT, DATA, write_config_folder

pytestmark = pytest.mark.slow

CAPTIONS = read_prompts(DATA / "memorized.txt").texts[:1]
EXACT = ("fp32", "EMA twin", "folder", "shards")


def prune(model: Path, out: Path, calibration: Path) -> dict[str, Any]:
    """The pruned model in `out`; what is ordinary is taken from the checkpoint as it ships.

    What trajectories and more seeds say of the demo is asked in test_demo.
    """
    prompts = out.with_suffix(".txt")
    prompts.write_text("\n".join(CAPTIONS))
    done = run("prune", model, "--prompts", prompts, "-o", out, "--calibration", calibration, "--force",
               "--device", "cpu", "--precision", "fp32", "--json",
               "--confirm", "none", "--seeds", 4)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def convert(layout: str, place: Path) -> Path:
    out = place / f"{layout.replace(' ', '-')}.safetensors"
    if layout in ("folder", "shards"):
        own = load_pipeline(open_checkpoint(CHECKPOINT), device=torch.device("cpu"), dtype=torch.float16)
        config = write_config_folder(place / "config", own.text_encoder, own.unet, own.vae)
        pipeline = hub.StableDiffusionPipeline.from_single_file(
            str(CHECKPOINT), config=str(config), local_files_only=True, torch_dtype=torch.float16
        )
        size = {"max_shard_size": "2MB"} if layout == "shards" else {}
        pipeline.save_pretrained(out.with_suffix(""), safe_serialization=True, **size)
        return out.with_suffix("")
    with safe_open(CHECKPOINT, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(CHECKPOINT)
    if layout == "EMA twin":
        unet = {n: t for n, t in tensors.items() if n.startswith(ldm.UNET_PREFIX)}
        tensors |= {
            f"model_ema.{n.removeprefix('model.').replace('.', '')}": t.clone() for n, t in unet.items()
        }
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[layout]
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    ldm.save_tensors(out, tensors, metadata)
    return out


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, demo_calibration: Path) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("demo") / "expected.safetensors"
    return out, prune(CHECKPOINT, out, demo_calibration)


@pytest.mark.parametrize("layout", [*EXACT, "bf16"])
def test_the_same_neurons_are_found_and_removed(
    tmp_path: Path, expected: tuple[Path, Any], demo_calibration: Path, layout: str
) -> None:
    model = convert(layout, tmp_path)
    out = tmp_path / ("clean" if model.is_dir() else "clean.safetensors")
    told = prune(model, out, demo_calibration)
    path, wanted = expected
    assert told["neurons"] == wanted["neurons"]
    for entry, other in zip(told["prompts"], wanted["prompts"], strict=True):
        assert entry["status"] == other["status"] == "suppressed"
        for score in ("score_before", "score_after"):
            near = 1e-4 if layout in EXACT else 0.05
            assert entry[score] == pytest.approx(other[score], abs=near)
    ours, theirs = (
        load_model(open_checkpoint(p), device=torch.device("cpu"), dtype=torch.float32)
        for p in (out, path)
    )
    assert same_weights(ours.unet, theirs.unet) == (layout in EXACT)
    if out.is_file():
        zeros = model_zeros(open_checkpoint(out))
        assert all(n["row"] in zeros[n["layer"]].everywhere for n in told["neurons"])
