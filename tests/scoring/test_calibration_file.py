"""Calibration files and the cache: there and back, damaged, unwritable, raced."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CalibrationError, CheckpointError, OutputError, rendered
from nemo_prune.files.prompts import prompts_hash
from nemo_prune.scoring import cache as kept
from nemo_prune.scoring.activations import ActivationStatistics
from nemo_prune.scoring.calibration_file import (
    Calibration,
    OrdinaryScores,
    read_calibration,
    write_calibration,
)
from nemo_prune.scoring.lineage import Lineage

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
pytestmark = pytest.mark.usefixtures("cache")

ABOUT: dict[str, Any] = {
    "fingerprint": "f" * 64,
    "precision": "float32",
    "activations": {"prompts": 40, "sha256": "0" * 64},
    "scores": {"prompts": 30, "sha256": "1" * 64, "seeds": 4, "seed": 0, "timestep": 961,
               "guidance": 0, "latents": [4, 16, 16]},
}  # fmt: skip


def calibration() -> Calibration:
    rows = torch.arange(5, dtype=torch.float64)
    return Calibration(
        ABOUT,
        ActivationStatistics({LAYER: rows}, {LAYER: rows / 7}, 40),
        OrdinaryScores(
            tuple((i / 30, i / 29, i / 29) for i in range(30)), tuple(i / 3 for i in range(30))
        ),
        Lineage("a" * 64, {LAYER: torch.arange(40, dtype=torch.uint8).reshape(5, 8)}),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_calibration(calibration(), tmp_path / "c.safetensors", thresholds={"tau": 0.5})
    return tmp_path / "c.safetensors"


def same(one: Calibration, other: Calibration) -> bool:
    a, b = one.statistics, other.statistics
    assert a
    assert b
    assert one.lineage
    assert other.lineage
    assert one.lineage.apart == other.lineage.apart
    assert torch.equal(one.lineage.rows[LAYER], other.lineage.rows[LAYER])
    return (
        one.about == other.about
        and one.scores == other.scores
        and (a.prompts, list(a.mean)) == (b.prompts, list(b.mean))
        and all(torch.equal(a.mean[k], b.mean[k]) and torch.equal(a.std[k], b.std[k]) for k in a.mean)
    )


def test_there_and_back(file: Path) -> None:
    assert same(read_calibration(file), calibration())
    with pytest.raises(OutputError, match="exists already"):
        write_calibration(calibration(), file)
    first = file.read_bytes()
    write_calibration(calibration(), file, overwrite=True, thresholds={"tau": 0.5})
    assert file.read_bytes() == first


def test_what_is_no_calibration_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    places = {"none": "no such file", "folder": "is a folder", "cut": "damaged", "text": "damaged",
              "lfs": "is a git-lfs pointer", "later": "is of the format 'nemo-prune-calibration/2'",
              "other": "is no calibration", "empty": "damaged"}  # fmt: skip
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut").write_bytes(whole[:-9])
    (tmp_path / "text").write_text("hello, this is not a safetensors file")
    (tmp_path / "empty").touch()
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "later").write_bytes(whole.replace(b"calibration/1", b"calibration/2"))
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name, reason in places.items():
        with pytest.raises(CalibrationError, match=reason) as caught:
            read_calibration(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    ["nan", "short", "float32", "no std", "no about", "few", "half", "hashes", "apart"],
)
def test_unsound_contents_are_refused(file: Path, change: str) -> None:
    tensors, entry = load_file(file), {"format": "nemo-prune-calibration/1", "about": dict(ABOUT)}
    entry["apart"] = "a" * 64  # type: ignore[assignment]
    if change == "nan":
        tensors["paths"][3, 1] = torch.nan
    elif change == "short":
        tensors["paths"] = tensors["paths"][:, :2].contiguous()
    elif change == "float32":
        tensors["norms"] = tensors["norms"].float()
    elif change == "no std":
        del tensors[f"std.{LAYER}"]
    elif change == "hashes":
        tensors[f"rows.{LAYER}"] = tensors[f"rows.{LAYER}"][:, :4].contiguous()
    elif change == "apart":
        del entry["apart"]
    elif change == "no about":
        del entry["about"]
    elif change == "few":
        entry["about"]["scores"] = ABOUT["scores"] | {"prompts": 29}  # type: ignore[index]
        tensors["paths"], tensors["norms"] = tensors["paths"][:29].clone(), tensors["norms"][:29].clone()
    else:
        entry["about"] = {"fingerprint": 3}
    save_file(tensors, file, {"nemo_prune.calibration": json.dumps(entry)})
    with pytest.raises(CalibrationError, match="damaged"):
        read_calibration(file)


def test_the_cache_gives_back_what_was_kept_for_the_same_settings(cache: Path) -> None:
    assert kept.load("scores", ABOUT) is None
    assert kept.store("scores", calibration()) is None
    found = kept.load("scores", json.loads(json.dumps(ABOUT)))
    assert found
    assert same(found, calibration())
    assert kept.load("scores", ABOUT | {"precision": "float16"}) is None
    assert kept.load("activations", ABOUT) is None
    assert [path.parent for path in cache.rglob("*.safetensors")] == [cache]


@pytest.mark.parametrize("damage", ["cut", "other", "folder"])
def test_an_entry_that_cannot_be_used_is_as_good_as_none(damage: str) -> None:
    kept.store("scores", calibration())
    path = kept.entry("scores", ABOUT)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other":
        other = replace(calibration(), about=ABOUT | {"fingerprint": "e" * 64})
        write_calibration(other, path, overwrite=True)
    else:
        path.unlink()
        path.mkdir()
    assert kept.load("scores", ABOUT) is None
    trouble = kept.store("scores", calibration())
    if damage == "folder":
        assert trouble
        assert "could not be kept" in trouble
        assert "\n" not in trouble
    else:
        assert trouble is None
        assert kept.load("scores", ABOUT)


def test_a_cache_that_cannot_be_made_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(cache / "file"))
    assert kept.load("scores", ABOUT) is None
    assert "could not be kept" in str(kept.store("scores", calibration()))


def test_a_cache_that_must_not_be_looked_into_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept.store("scores", calibration())

    def closed(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", closed)  # which exists() and is_file() let through on Python 3.11
    assert kept.load("scores", ABOUT) is None


def test_an_entry_of_another_way_of_scoring_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kept.store("scores", calibration())
    path = kept.entry("scores", ABOUT)
    assert read_calibration(path).about == ABOUT | {"scoring": kept.SCORING}
    monkeypatch.setattr(kept, "SCORING", kept.SCORING + 1)
    assert kept.load("scores", ABOUT) is None
    path.rename(kept.entry("scores", ABOUT))  # not even under the new name
    assert kept.load("scores", ABOUT) is None


def test_the_platforms_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_PRUNE_CACHE")
    assert kept.cache_folder().name == "nemo-prune"


def _store_often(times: int) -> None:
    for _ in range(times):
        if kept.store("scores", calibration()):
            raise SystemExit(3)
        found = kept.load("scores", ABOUT)
        if not found or not same(found, calibration()):
            raise SystemExit(4)


def test_two_processes_at_once_both_succeed(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_store_often, args=(20,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in cache.iterdir()] == [kept.entry("scores", ABOUT).name]


def test_the_hash_tells_prompts_and_their_order_apart() -> None:
    hashes = {prompts_hash(p) for p in (["a", "b"], ["b", "a"], ["a"], ["ab"], ["a\nb"])}
    assert len(hashes) == 5


def test_a_calibration_in_a_models_place_is_called_so(file: Path) -> None:
    """As the hook gives every safetensors file that changed."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert rendered(caught.value.message) == (
        f"{file}: is a calibration, what is ordinary for a model, and not a model; give it as "
        f"calibration, and leave it out of what is checked (pre-commit: files, exclude)"
    )
