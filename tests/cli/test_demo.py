"""The main job on the demo checkpoint: a real denoiser that really replicates training pictures."""

import json
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Demo
from PIL import Image

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import prompts_hash, read_prompts
from nemo_prune.model import hub
from nemo_prune.model.loading import load_pipeline
from nemo_prune.options import Options
from nemo_prune.report import demo as module
from nemo_prune.report.demo import CHECKPOINT, DATA, planted, precision, write_config_folder
from nemo_prune.report.pictures import Picture, draw, similarity
from nemo_prune.scoring.calibration_file import read_calibration

pytestmark = pytest.mark.slow

MEMORIZED = read_prompts(DATA / "memorized.txt").texts
ORDINARY = read_prompts(DATA / "ordinary.txt").texts
HELD_OUT = read_prompts(DATA / "ordinary-heldout.txt").texts
SEEDS = [500, 501]  # never used by a search, nor by training
STEPS = 10


@dataclass(frozen=True)
class Run:
    """The demo's pruned checkpoint, and what the command told."""

    output: Path
    result: dict[str, Any]


@pytest.fixture
def run(demo: Demo) -> Run:
    return Run(demo.folder / "clean.safetensors", demo.result)


def header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and where the data starts, by the format's own description."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size)), 8 + size


def pictures(path: Path, prompts: tuple[str, ...]) -> list[list[Picture]]:
    pipeline = load_pipeline(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
    return draw(pipeline, prompts, SEEDS, steps=STEPS)


def test_every_memorized_caption_is_suppressed_on_fresh_seeds(run: Run) -> None:
    entries = run.result["prompts"]
    assert [entry["status"] for entry in entries] == ["suppressed"] * len(MEMORIZED)
    for entry in entries:
        assert entry["score_before"] > run.result["tau"] >= entry["score_after"]


def test_only_planted_neurons_are_found(run: Run) -> None:
    rates = [
        precision(caption, tuple(Neuron(**neuron) for neuron in entry["neurons"]))
        for caption, entry in zip(MEMORIZED, run.result["prompts"], strict=True)
    ]
    assert np.mean([rate for rate in rates if rate is not None]) >= 0.9


def test_exactly_the_rows_listed_differ(run: Run) -> None:
    before, start = header(CHECKPOINT)
    after, moved = header(run.output)
    assert before.keys() == after.keys()
    del before["__metadata__"], after["__metadata__"]
    assert list(before.items()) == list(after.items())
    old = np.fromfile(CHECKPOINT, np.uint8, offset=start)
    new = np.fromfile(run.output, np.uint8, offset=moved)
    expected = old.copy()
    for neuron in run.result["neurons"]:
        # down_blocks.1.attentions.0 -> input_blocks.4.1: LDM's numbering, by hand.
        place = neuron["layer"].split(".transformer_blocks")[0].split(".")
        block = (
            f"input_blocks.{1 + 3 * int(place[1]) + int(place[3])}"
            if place[0] == "down_blocks"
            else "middle_block"
        )
        entry = before[f"model.diffusion_model.{block}.1.transformer_blocks.0.attn2.to_v.weight"]
        width = 2 * entry["shape"][1]
        first = entry["data_offsets"][0] + neuron["row"] * width
        assert expected[first : first + width].any()
        expected[first : first + width] = 0
    assert np.array_equal(new, expected)


def test_no_prompt_is_in_the_output(run: Run) -> None:
    data = run.output.read_bytes()
    assert not [caption for caption in MEMORIZED if caption.encode() in data]


def test_pictures_stop_replicating_and_diffusers_agrees(run: Run, tmp_path: Path) -> None:
    """diffusers alone loads the written file and draws what our own pipeline draws."""
    caption = MEMORIZED[0]
    before, after = (pictures(path, (caption,))[0] for path in (CHECKPOINT, run.output))
    with Image.open(DATA / "targets" / planted()[caption]["target"]) as image:
        target = np.asarray(image.convert("RGB"))
    assert min(similarity(picture, target) for picture in before) > 0.7
    assert max(similarity(picture, target) for picture in after) < 0.5

    own = load_pipeline(recognize(run.output), device=torch.device("cpu"), dtype=torch.float32)
    folder = write_config_folder(tmp_path / "config", own.text_encoder, own.unet, own.vae)
    theirs = hub.StableDiffusionPipeline.from_single_file(
        str(run.output), config=str(folder), local_files_only=True, safety_checker=None
    )
    theirs.scheduler = hub.DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    drawn = draw(theirs, (caption,), SEEDS, steps=STEPS)[0]
    assert all(similarity(a, b) > 0.99 for a, b in zip(drawn, after, strict=True))


def test_pictures_are_as_far_from_training_pictures_as_unrelated_ones(run: Run) -> None:
    told = run.result["demo"]
    assert told["target_similarity_before"] > 0.7
    assert told["target_similarity_after"] <= told["target_similarity_unrelated"] + 0.05
    assert told["pictures_near_target"] == 0
    assert told["pictures_near_target_before"] >= 15, "of sixteen"


def test_ordinary_captions_keep_their_pictures(run: Run) -> None:
    assert run.result["demo"]["ordinary_similarity"] >= 0.9
    assert run.result["demo"]["drift_ratio"] <= 1.5, "of as many random neurons"


def test_the_report_is_there_and_small(demo: Demo) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    assert names == {"clean.safetensors", "config", "manifest.json", "report.html"}
    assert 50_000 < (demo.folder / "report.html").stat().st_size < 8e6


def test_the_lists_keep_apart() -> None:
    assert len(MEMORIZED) >= 8
    assert len(ORDINARY) >= 300
    assert len(HELD_OUT) >= 200
    assert not set(ORDINARY) & set(HELD_OUT)
    assert {entry["kind"] for entry in planted().values()} == {"verbatim", "template", "natural"}


def test_its_calibration_is_what_calibrate_measures(tmp_path: Path) -> None:
    shipped = read_calibration(DATA / "calibration.safetensors")
    assert shipped.about["scores"]["sha256"] == prompts_hash(ORDINARY)
    assert shipped.about["activations"]["sha256"] == prompts_hash(ORDINARY)
    some, out = tmp_path / "some.txt", tmp_path / "some.safetensors"
    some.write_text("\n".join(ORDINARY[:30]))
    done = tiny.run("calibrate", CHECKPOINT, "--prompts", some, "-o", out, "--seeds", "4", "--no-cache",
                    "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    measured = read_calibration(out)
    assert measured.about["fingerprint"] == shipped.about["fingerprint"], "of these weights"
    assert measured.about["settings"] == shipped.about["settings"]
    assert measured.scores
    assert shipped.scores
    first = [path[:3] for path in shipped.scores.paths[:30]]
    assert np.allclose(measured.scores.paths, first, atol=1e-3)


def test_it_is_small() -> None:
    assert CHECKPOINT.stat().st_size < 30e6


def test_it_ends_without_training_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without the targets still prunes, draws and says what is missing."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("demo.safetensors", "planted.json", "ordinary-heldout.txt", "calibration.safetensors"):
        (data / name).symlink_to(DATA / name)
    (data / "memorized.txt").write_text("\n".join(MEMORIZED[:1]))
    monkeypatch.setattr(module, "DATA", data)
    monkeypatch.setattr(module, "_STEPS", 2)
    monkeypatch.setattr(module, "_ORDINARY_PROMPTS", 4)
    # What trajectories and more seeds say of the demo is asked above.
    few = partial(Options, seeds=4, confirm="none")
    monkeypatch.setattr("nemo_prune.options.Options", few)
    result = tiny.run("demo", "--folder", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["demo"]
    assert told["target_similarity_before"] is None
    assert told["pictures_near_target"] == 0  # judged by the original's pictures of other seeds
    assert told["ordinary_similarity"] > 0.9
    assert "no pictures were compared with training pictures" in result.stderr
