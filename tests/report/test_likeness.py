"""Measures of pictures: what they see, and weights that are given or broken."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data
from skimage.feature import match_template

from nemo_prune.errors import OptionError
from nemo_prune.model.hub import CLIPModel, CLIPTextConfig
from nemo_prune.report.gallery import inlined_difference
from nemo_prune.report.likeness import Likeness, mean, open_likeness
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target, read_targets


@cache
def photo(name: str, side: int = 128) -> Picture:
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    return np.asarray(ImageOps.fit(image, (side, side)))


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return open_likeness()


def test_a_picture_is_like_itself_and_not_like_another(likeness: Likeness) -> None:
    cat, coffee = (likeness.describe(photo(name)) for name in ("chelsea", "coffee"))
    assert likeness.to_target(cat, cat) == pytest.approx(
        {"ms_ssim": 1, "edges": 1, "colour": 1, "region": 1}, abs=1e-3
    )
    other = likeness.to_target(cat, coffee)
    assert other["ms_ssim"] < 0.3
    assert other["edges"] < 0.3
    assert other["region"] < 0.7
    assert likeness.compare(cat, coffee) == likeness.compare(coffee, cat)


def test_layout_survives_other_colours_and_colours_another_layout(likeness: Likeness) -> None:
    cat = photo("chelsea")
    plain, swapped, turned = (
        likeness.describe(np.ascontiguousarray(p)) for p in (cat, cat[:, :, ::-1], np.rot90(cat, 2))
    )
    recoloured, rotated = likeness.compare(plain, swapped), likeness.compare(plain, turned)
    assert recoloured["edges"] > 0.8 > recoloured["colour"]
    assert rotated["colour"] > 0.99
    assert rotated["edges"] < 0.5


def test_a_part_that_moved_is_found(likeness: Likeness) -> None:
    """The whole picture differs; the foreground is there, elsewhere."""
    target, other = photo("chelsea"), photo("coffee").copy()
    other[50:114, 3:67] = target[32:96, 32:96]
    wanted, found = likeness.describe(target), likeness.describe(other)
    scores = likeness.to_target(wanted, found)
    assert scores["region"] > 0.95
    assert scores["ms_ssim"] < 0.4


@pytest.mark.parametrize("names", [("chelsea", "coffee"), ("rocket", "camera"), ("coins", "coins")])
def test_regions_are_compared_as_template_matching_does(
    likeness: Likeness, names: tuple[str, str]
) -> None:
    target, picture = (likeness.describe(photo(name)) for name in names)
    tiles = [target.gray[y : y + 64, x : x + 64] for y in (0, 32, 64) for x in (0, 32, 64)]
    expected = max(match_template(picture.gray, tile).max() for tile in tiles if tile.std() > 0.04)
    assert likeness.to_target(target, picture)["region"] == pytest.approx(expected, abs=1e-4)


def test_flat_pictures_have_scores(likeness: Likeness) -> None:
    white, black = (likeness.describe(np.full((64, 64, 3), v, np.uint8)) for v in (255, 0))
    for one in (white, black):
        for two in (white, black):
            assert all(np.isfinite(list(likeness.to_target(one, two).values())))


def test_means_are_by_measure() -> None:
    assert mean([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.25}
    assert mean([]) == {}


class _Descriptor(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def test_sscd_from_a_torchscript_file(tmp_path: Path) -> None:
    path = tmp_path / "sscd.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(_Descriptor(), torch.zeros(1, 3, 288, 288)).save(str(path))  # type: ignore
    found = open_likeness(sscd=path)
    cat, coffee = (found.describe(photo(name)) for name in ("chelsea", "coffee"))
    assert found.compare(cat, cat)["sscd"] == pytest.approx(1, abs=1e-4)
    assert found.compare(cat, coffee)["sscd"] < 0.99
    assert found.used[-1]["file"] == "sscd.pt"
    assert len(found.used[-1]["sha256"]) == 64


def write_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPVisionConfig

    from nemo_prune.model.tokenizer import load_tokenizer

    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    text = CLIPTextConfig(**small).to_dict()
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small).to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)


def test_clip_from_a_folder(tmp_path: Path) -> None:
    write_clip(tmp_path)
    found = open_likeness(clip=tmp_path)
    assert found.alignment is not None
    cat, mat = (found.alignment(photo("chelsea"), text) for text in ("a cat", "a mat " * 100))
    assert -1 <= cat <= 1
    assert cat != mat
    assert found.used[-1]["name"] == "clip"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("sscd", [f"{what}; give SSCD's .torchscript.pt" for what in
                  ("is not a TorchScript file", "no such file", "is not a TorchScript file")]),
        ("clip", ["is not a folder; give one with a CLIP model of transformers"] * 2
         + ["holds no CLIP model with its tokenizer"]),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_used_are_named(tmp_path: Path, option: str, words: list[str]) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a model")
    for path, said in zip((broken, tmp_path / "none", tmp_path), words, strict=True):
        with pytest.raises(OptionError) as caught:
            open_likeness(**{option: path})
        assert str(caught.value) == f"{option} {path}: {said}"


def test_a_model_that_describes_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(torch.nn.Linear(5, 2), torch.zeros(1, 5)).save(str(path))  # type: ignore
    found = open_likeness(sscd=path)
    with pytest.raises(OptionError) as caught:
        found.describe(photo("chelsea"))
    assert str(caught.value) == f"sscd {path}: does not describe a picture; give SSCD's model"


def test_a_clip_whose_weights_lie_in_shards(tmp_path: Path) -> None:
    """transformers loads it; which file was used could not be said by one hash."""
    write_clip(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    with pytest.raises(OptionError) as caught:
        open_likeness(clip=tmp_path)
    assert str(caught.value) == f"clip {tmp_path}: holds no model.safetensors"


# ---------------------------------------------------------------------------------- targets

PROMPTS = ["A red fox, running!", "The sea"]


def save(path: Path) -> Path:
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def test_targets_by_number_and_by_text(tmp_path: Path) -> None:
    save(tmp_path / "001.png")
    save(tmp_path / "a_red_fox_running.jpg")
    save(tmp_path / "17.png")
    (tmp_path / "notes.txt").write_text("0")
    found = read_targets(tmp_path, PROMPTS)
    assert {index: path.name for index, path in found.items()} == {
        0: "a_red_fox_running.jpg", 1: "001.png"
    }  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";"])
def test_targets_by_csv_in_the_folder_or_named(tmp_path: Path, separator: str) -> None:
    save(tmp_path / "x.png")
    table = tmp_path / "t.csv"
    rows = [["Caption", "File"], ['"The sea"', "x.png"], ['"unknown, and known"', "y.png"]]
    table.write_text("".join(separator.join(row) + "\n" for row in rows))
    for place in (tmp_path, table):
        assert read_targets(place, PROMPTS) == {1: tmp_path / "x.png"}


def test_targets_by_the_separators_of_windows(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    save(tmp_path / "pictures" / "x.png")
    table = tmp_path / "t.csv"
    table.write_text("prompt,file\nThe sea,pictures\\x.png\n")
    assert read_targets(table, PROMPTS) == {1: tmp_path / "pictures" / "x.png"}


def test_prompts_of_a_csv_are_known_in_another_case_and_numbers_are_none(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    table = tmp_path / "t.csv"
    table.write_text("PROMPT,File\nthe sea!,x.png\n")
    assert read_targets(table, PROMPTS) == {1: tmp_path / "x.png"}
    table.write_text("prompt,file\nthe sea,y.png\nThe sea,x.png\n")  # the very text goes first
    assert read_targets(table, PROMPTS) == {1: tmp_path / "x.png"}
    with pytest.raises(OptionError, match="no picture belongs"):
        read_targets(table, ["THE SEA", "THE sea"])
    table.write_text("prompt,file\n0,x.png\n1,x.png\n")
    with pytest.raises(OptionError, match=r"none of its 2 rows has the text .* \(not its number\)"):
        read_targets(table, PROMPTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2\n", "needs a column"), ("prompt,file\nThe sea,none.png\n", "not there"),
     ('prompt,file\nThe sea,none.png\n"A red fox, running!",no.png\nnobody,else.png\n',
      r"names none\.png, no\.png, which are not there"),
     ("prompt,file\nThe sea,none.png\nThe sea,C:/a/x.png\nThe sea,file:/a/x.png\n",
      r"names file:/a/x\.png: addresses"),
     ("prompt,file\nThe sea,file:///a/x.png\n",
      r"names file:///a/x\.png: addresses are not read, a picture's path is wanted"),
     ("prompt,file\nThe sea,https://example.org/x.png\n", "addresses are not read"),
     ("prompt,file\nnobody,x.png\n", "no picture belongs")],
)  # fmt: skip
def test_unusable_targets_are_said_so(tmp_path: Path, content: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_targets(table, PROMPTS)
    with pytest.raises(OptionError, match="no such file or folder"):
        read_targets(tmp_path / "none", PROMPTS)
    (tmp_path / "second.csv").touch()
    with pytest.raises(OptionError, match=r"holds several tables \(CSV, TSV\); name the one to use"):
        read_targets(tmp_path, PROMPTS)


def test_targets_are_cropped_to_the_pictures_size(tmp_path: Path) -> None:
    assert open_target(save(tmp_path / "x.png"), 30, 24).shape == (24, 30, 3)
    broken = tmp_path / "b.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(OptionError, match=r"b\.png: is not a readable picture; mend or remove it"):
        open_target(broken, 8, 8)


def test_noise_differences_become_pictures() -> None:
    for channels in (4, 1):
        assert inlined_difference(torch.rand(channels, 8, 8)).startswith("data:image/png;base64,")


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "targets.csv"
    table.write_bytes(b"prompt,file\nA caf\xe9,a.png\n")
    with pytest.raises(OptionError) as caught:
        read_targets(table, PROMPTS)
    said = f"targets {table}: is no folder and no readable CSV (UTF-8)"
    assert str(caught.value) == f"{said}; of a spreadsheet save it as CSV UTF-8"
