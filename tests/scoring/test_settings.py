"""What a config changes that no weight tells: a calibration fits the settings it was made with alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import pytest
import torch
from tiny import Told as ToldAll
from tiny import run

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CalibrationError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.live import opened
from nemo_prune.model.loading import load_model
from nemo_prune.model.settings import contradicted, settings_from, settings_of
from nemo_prune.options import Options
from nemo_prune.scoring.calibration_file import read_calibration, write_calibration
from nemo_prune.scoring.lineage import weights_sha256
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary

CPU = torch.device("cpu")
SETTINGS = [
    {"norm_num_groups": 16}, {"act_fn": "gelu"}, {"center_input_sample": True},
    {"flip_sin_to_cos": False}, {"freq_shift": 1}, {"norm_eps": 1e-3},
    {"resnet_time_scale_shift": "default", "mid_block_scale_factor": 2},
]  # fmt: skip


class Told(ToldAll):
    """All notes but on what random weights do not show."""

    def note(self, text: str) -> None:
        if "correlation of output and noise" not in text:
            super().note(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a file and as a folder, its configs alone, and the calibration of the file."""
    place = tmp_path_factory.mktemp("settings")
    model = layouts.single_file(place / "model.safetensors")
    layouts.folder(place / "folder")
    shutil.copytree(place / "folder", place / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    (place / "ordinary.txt").write_text("\n".join(f"a photo of {i} cats" for i in range(30)))
    made = run("calibrate", model, "--prompts", place / "ordinary.txt", "-o", place / "c.safetensors",
               "--no-cache", "--seeds", "2", "--device", "cpu", "-q")  # fmt: skip
    assert made.exit_code == 0, made.output
    return place


def edited(source: Path, to: Path, component: str = "unet", **changes: Any) -> Path:
    """A copy of a folder with another config; None leaves a setting out."""
    shutil.copytree(source, to)
    path = to / component / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return to


def ordinary(place: Path, model: Path, told: Told | None = None, **options: Any) -> Ordinary:
    options = {"calibration": place / "c.safetensors", "device": "cpu", "seeds": 2} | options
    checkpoint, chosen, told = open_checkpoint(model), Options(**options), told or Told()
    return Ordinary(open_engine(checkpoint, chosen, told), checkpoint, chosen, None, told)


def loaded(path: Path, **options: Any) -> LoadedModel:
    return load_model(open_checkpoint(path), device=CPU, dtype=torch.float32, **options)


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: "-".join(changes))
def test_a_calibration_of_other_settings_is_refused(
    place: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    key = [*changes][-1]
    model = edited(place / "folder", tmp_path / "folder", **changes)
    with pytest.raises(
        CalibrationError, match=rf"model or setting \(unet\.{key} .* instead of .*\); make"
    ):
        ordinary(place, model)
    configs = edited(place / "configs", tmp_path / "configs", **changes)
    with pytest.raises(CalibrationError, match=rf"unet\.{key}"):
        ordinary(place, place / "model.safetensors", config=configs)


def test_a_text_encoders_settings_count(place: Path, tmp_path: Path) -> None:
    configs = edited(place / "configs", tmp_path / "c", "text_encoder", layer_norm_eps=1e-3)
    told = Told()
    with pytest.raises(CalibrationError, match=r"text_encoder\.layer_norm_eps 1e-05 instead of 0\.001"):
        ordinary(place, place / "model.safetensors", told, config=configs)
    assert told.notes == [], "a single file does not say"
    with pytest.raises(CalibrationError, match="layer_norm_eps"):
        ordinary(place, place / "folder", told, config=configs)
    assert told.notes == [
        f"{configs / 'text_encoder/config.json'}: contradicts what the model says of itself "
        f"(layer_norm_eps 0.001 instead of 1e-05): it is run as config says"
    ]


def test_the_same_settings_written_otherwise_are_the_same(place: Path, tmp_path: Path) -> None:
    told = Told()
    for model in (place / "model.safetensors", place / "folder"):
        ordinary(place, model, told)
    left_out = dict.fromkeys(("norm_num_groups", "act_fn", "freq_shift", "norm_eps", "dropout"))
    ordinary(place, edited(place / "folder", tmp_path / "less", **left_out), told)
    again = {"act_fn": "swish", "only_cross_attention": [False] * 4, "freq_shift": False,
             "attention_head_dim": [1] * 4, "_diffusers_version": "0.0.1", "_name_or_path": "elsewhere",
             "of_another_program": 7, "upcast_attention": True, "center_input_sample": None}  # fmt: skip
    ordinary(place, edited(place / "folder", tmp_path / "more", **again), told)
    configs = edited(place / "configs", tmp_path / "configs", **left_out | again)
    ordinary(place, place / "model.safetensors", told, config=configs)
    assert told.notes == []


@pytest.mark.usefixtures("cache")
def test_the_cache_keeps_other_settings_apart(place: Path, tmp_path: Path) -> None:
    def detect(*more: object) -> str:
        model, prompts = place / "model.safetensors", place / "ordinary.txt"
        result = run("detect", model, "--prompts", prompts, "--json", "--tau", "0.9", "--seeds", "2",
                     "--device", "cpu", *more)  # fmt: skip
        assert result.exit_code == 0, result.output
        return str(json.loads(result.stdout)["scores_from"])

    configs = edited(place / "configs", tmp_path / "configs", norm_num_groups=16)
    assert [detect(), detect(), detect("--config", configs), detect("--config", configs)] == [
        "this run", "cache", "this run", "cache",
    ]  # fmt: skip


def test_what_a_config_contradicts_of_the_files_own_metadata_is_said(
    place: Path, tmp_path: Path
) -> None:
    told = Told()
    configs = edited(place / "configs", tmp_path / "configs", attention_head_dim=2, norm_eps=1e-4)
    open_engine(
        open_checkpoint(place / "model.safetensors"), Options(config=configs, device="cpu"), told
    )
    assert told.notes[0] == (
        f"{configs / 'unet/config.json'}: contradicts what the model says of itself (attention_head_dim "
        f"2 instead of 1): it is run as config says"
    )


class TestOfEarlierVersions:
    """Files that do not say with which settings they were made."""

    @pytest.fixture
    def old(self, place: Path, tmp_path: Path) -> Path:
        found = read_calibration(place / "c.safetensors")
        about = {key: value for key, value in found.about.items() if key != "settings"}
        write_calibration(replace(found, about=about), tmp_path / "old.safetensors")
        return tmp_path / "old.safetensors"

    def test_they_are_for_the_file_by_its_own_word(self, place: Path, tmp_path: Path, old: Path) -> None:
        told = Told()
        model = place / "model.safetensors"
        ordinary(place, model, told, calibration=old)
        ordinary(place, model, told, calibration=old, config=place / "configs")
        assert told.notes == []
        configs = edited(place / "configs", tmp_path / "configs", norm_num_groups=16)
        with pytest.raises(CalibrationError, match=r"norm_num_groups at its default instead of 16"):
            ordinary(place, model, calibration=old, config=configs)

    def test_that_a_folder_cannot_tell_is_said(self, place: Path, old: Path) -> None:
        told = Told()
        ordinary(place, place / "folder", told, calibration=old)
        assert len(told.notes) == 1
        assert "does not say with which settings of its config the model was run" in told.notes[0]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layout_and_a_live_pipeline_have_the_same(family: str, tmp_path: Path) -> None:
    file = layouts.single_file(tmp_path / "m.safetensors", family)
    pipe = layouts.pipeline_of(file, family)
    folder = layouts.folder(tmp_path / "folder", family)
    models = [loaded(file), loaded(folder)]
    with opened(pipe) as (_, live):
        models.append(live)
        assert len({weights_sha256(model) for model in models}) == 1
        first, *others = [settings_of(model) for model in models]
        assert others == [first, first]
        assert json.loads(json.dumps(first)) == first
    assert models[0].own_settings == first
    assert models[1].own_settings is None


def test_what_a_model_that_predicts_v_was_noised_with_counts(tmp_path: Path) -> None:
    folder = layouts.folder(tmp_path / "folder", "sd2")
    path = folder / "scheduler" / "scheduler_config.json"
    schedule = json.loads(path.read_text())
    found = []
    for kind in ("epsilon", "v_prediction"):
        for end in (0.012, 0.02):
            path.write_text(json.dumps(schedule | {"prediction_type": kind, "beta_end": end}))
            found.append(settings_of(loaded(folder)))
    assert found[0] == found[1]
    assert (found[2]["scheduler.beta_end"], found[2]["scheduler.beta_schedule"]) == (
        0.012,
        "scaled_linear",
    )
    assert "scheduler.beta_end" not in found[3], "diffusers' default"


def test_a_setting_that_diffusers_adds_counts_and_one_that_it_does_not_know_never() -> None:
    class Later:
        def __init__(self, sample_size: int = 8, act_fn: str = "silu", later: str = "plain") -> None: ...

    model: Any = SimpleNamespace(
        unet=Later(), record=SimpleNamespace(denoiser="unet", pooled=False), prediction_type="epsilon"
    )
    config = {"later": "other", "unknown": 3, "sample_size": 4}
    assert settings_from(model, config, []) == {"unet.later": "other"}
    assert contradicted(Later, {"later": "plain", "unknown": 2}, config) == [
        "later other instead of plain"
    ]
    assert contradicted(None, {"hidden_act": "gelu"}, {}) == []
