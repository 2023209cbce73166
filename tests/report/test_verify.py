"""A prompt's status includes its pictures: verify with pictures drawn by hand, not by the model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from test_inputs import manifest_of
from test_likeness import photo
from test_report import make_data
from tiny import run, write_small

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.options import Options
from nemo_prune.report.pictures import Picture
from nemo_prune.report.suppression import score
from nemo_prune.report.verify import Report
from nemo_prune.scoring.criterion import best_pairs

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
ORDINARY = ["a boat", "a hill", "a cup"]
OTHERS = ("coffee", "rocket", "camera", "coins", "page", "clock", "astronaut", "text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    model = write_small(folder / "model.safetensors", side=16)
    write_model(recognize(model), [Neuron(LAYER, 3)], folder / "clean.safetensors", {})
    (folder / "prompts.txt").write_text("a memorized cat\n")
    (folder / "ordinary.txt").write_text("\n".join(ORDINARY))
    return folder


def noisy(picture: Picture, seed: int, strength: float = 8) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def verify(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: list[Picture], after: list[Picture],
    *more: object, status: str = "suppressed", trajectory: float | None = None,
) -> Result:  # fmt: skip
    """verify, at thresholds by which the score calls the prompt memorized and suppressed."""
    ordinary = [
        [noisy(photo(name), seed) for seed in range(2)] for name in ("moon", "grass", "brick")
    ]  # fmt: skip
    answers = [[before], ordinary, [after], ordinary]
    monkeypatch.setattr("nemo_prune.report.gallery.open_pipeline", lambda *_: None)
    monkeypatch.setattr("nemo_prune.report.gallery.draw", lambda *_, **__: answers.pop(0))
    done = run("verify", folder / "model.safetensors", folder / "clean.safetensors", "--prompts",
               folder / "prompts.txt", "--ordinary", folder / "ordinary.txt", "--seeds", "3",
               "--device", "cpu", "--images", len(before), "--json", "--tau", "1", "--gate", "1",
               "--manifest", _manifest(folder, status, trajectory), *more)  # fmt: skip
    assert done.stdout, done.stderr
    return done


def _manifest(folder: Path, status: str, trajectory: float | None) -> Path:
    """Says that the prompt is memorized, which no score above a gate of 1 could."""
    return manifest_of(folder / "manifest.json", [3], status=status, trajectory=trajectory)


def test_a_prompt_whose_picture_comes_back_from_two_of_eight_seeds_is_replicated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat = photo("chelsea")
    before = [noisy(cat, seed) for seed in range(8)]
    after = [photo(name) for name in OTHERS]
    after[2], after[7] = noisy(cat, 20), noisy(cat, 21)
    result = verify(folder, monkeypatch, before, after, "--report", tmp_path / "r.html",
                    "--card", tmp_path / "card.md")  # fmt: skip
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    (entry,) = found["prompts"]
    assert entry["status"] == "replicated"
    assert (entry["pictures"]["near_before"], entry["pictures"]["near_after"]) == (8, 2)
    assert entry["pictures"]["near_after_which"] == [2, 7]
    assert set(entry["pictures"]["near_above"]) == {"consensus"}
    assert (tmp_path / "r.html").read_text().count('<img class="near"') == 2
    assert "still drawn: caption 0" in (tmp_path / "card.md").read_text()
    assert 'class="replicated"' in (tmp_path / "r.html").read_text()
    assert "replicated" in result.stderr
    assert "2 of 8" in result.stderr
    assert not [limit for limit in found["limits"] if "may have been missed" in limit]


def test_without_the_picture_it_is_suppressed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cat = photo("chelsea")
    result = verify(folder, monkeypatch, [noisy(cat, seed) for seed in range(4)],
                    [photo(name) for name in OTHERS[:4]])  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prompts"][0]["status"] == "suppressed"
    assert found["prompts"][0]["pictures"]["near_after"] == 0
    assert [limit for limit in found["limits"] if "on 4 starting noises a prompt" in limit]


@pytest.mark.parametrize(
    ("stated", "trajectory", "seeds", "status"),
    [
        ("replicated", 0.8, 4, "replicated"),
        ("replicated", 0.8, 8, "suppressed"),
        ("not removable", 0.8, 4, "not removable"),
        ("not removable", 0.8, 8, "suppressed"),
        ("not removable", None, 4, "suppressed"),
        ("still memorized", None, 4, "suppressed"),
    ],
)
def test_what_a_trajectory_saw_drawn_takes_eight_pictures_to_be_suppressed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    stated: str,
    trajectory: float | None,
    seeds: int,
    status: str,
) -> None:
    cat = photo("chelsea")
    result = verify(folder, monkeypatch, [noisy(cat, seed) for seed in range(seeds)],
                    [photo(name) for name in OTHERS[:seeds]], status=stated,
                    trajectory=trajectory)  # fmt: skip
    (entry,) = json.loads(result.stdout)["prompts"]
    assert (entry["status"], entry["pictures"]["near_after"]) == (status, 0)
    assert result.exit_code == (status != "suppressed")


def test_a_model_whose_pictures_do_not_agree_is_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [photo(name) for name in OTHERS[:4]]
    result = verify(folder, monkeypatch, some, some)
    found = json.loads(result.stdout)
    assert found["prompts"][0]["status"] == "suppressed"
    assert "near_after" not in found["prompts"][0]["pictures"]
    said = " ".join(result.stderr.split())
    assert "not judged" in said
    assert "Pictures of prompt 0 could not be judged" in said


def test_a_target_is_judged_beside_the_other_seeds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed alone has no other seeds; the training picture says what is near all the same."""
    cat = photo("chelsea")
    Image.fromarray(cat).save(tmp_path / "0.png")
    result = verify(folder, monkeypatch, [noisy(cat, 1)], [noisy(cat, 2)], "--targets", tmp_path)
    (entry,) = json.loads(result.stdout)["prompts"]
    assert entry["status"] == "replicated"
    assert set(entry["pictures"]["near_above"]) == {"target"}


def test_prune_exits_by_its_reports_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a gate of 1 nothing is memorized, so that only the report's word decides."""
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("".join(f"an ordinary caption {i}\n" for i in range(30)))

    def verified(status: str) -> Report:
        return Report(make_data(status=status) | {"notes": []})

    for status, code in (("suppressed", 0), ("replicated", 1)):
        monkeypatch.setattr("nemo_prune.report.verify.verify", lambda *_, s=status: verified(s))
        result = run(folder / "model.safetensors", "--prompts", folder / "prompts.txt", "-o",
                     tmp_path / f"{status}.safetensors", "--report", tmp_path / f"{status}.json",
                     "--calibration-prompts", calibration, "--seeds", "2", "--device", "cpu",
                     "--tau", "1", "--gate", "1", "--confirm", "none")  # fmt: skip
        assert result.exit_code == code, result.output
        assert "still near the memorized picture" in " ".join(result.stderr.split())


def test_scores_are_in_the_unit_of_the_thresholds() -> None:
    """Published thresholds hold in the published unit, in which a range is that of the batch."""
    torch.manual_seed(0)
    common = torch.rand(4, 64, 64)
    differences = {10_000 + seed: (common + torch.rand(4, 64, 64)) / 3 for seed in range(3)}
    for published in (False, True):
        engine: Any = SimpleNamespace(
            published=published, baseline=lambda *_: differences, scores=lambda *_: {0: 0.5}
        )
        prompt: Any = None
        found = score(engine, engine, prompt, prompt, Options(seeds=3), frozenset())
        expected = max(best_pairs(differences, published=published).values())
        assert found["score_before"] == found["within_after"] == expected
    assert expected != max(best_pairs(differences).values())
