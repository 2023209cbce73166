"""Training pictures without names: by order, by likeness, and by a table that is filled in."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from test_inputs import manifest_of
from test_likeness import photo
from test_report import make_data
from test_verify import LAYER, noisy
from tiny import run, write_small

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import OptionError
from nemo_prune.options import Reporting, TargetsMatch
from nemo_prune.report.likeness import Likeness, open_likeness
from nemo_prune.report.matching import Matched, match_alike
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import find_targets, read_targets, shown_name, write_template
from nemo_prune.report.verdict import notes, target_lines

DRAWN = {0: "chelsea", 1: "coffee", 4: "rocket"}
Form = Literal["NFC", "NFD"]
ORDINARY = ("moon", "grass", "brick")


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return open_likeness()


def save(path: Path, picture: Picture) -> Path:
    Image.fromarray(picture).save(path)
    return path


def drawn(seeds: int = 2) -> dict[int, list[Picture]]:
    return {
        index: [noisy(photo(name), 10 * index + seed) for seed in range(seeds)]
        for index, name in DRAWN.items()
    }


def matched(likeness: Likeness, files: Sequence[Path], claimed: Sequence[int] | None = None,
            pictures: dict[int, list[Picture]] | None = None) -> list[Matched]:  # fmt: skip
    said = None if claimed is None else dict(zip(files, claimed, strict=True))
    others = [likeness.describe(photo(name)) for name in ORDINARY]
    return match_alike(files, drawn() if pictures is None else pictures, others, likeness, claimed=said)


def test_each_picture_finds_the_prompt_that_draws_it(likeness: Likeness, tmp_path: Path) -> None:
    files = [
        save(tmp_path / f"{place}.png", noisy(photo(name), place, 20))
        for place, name in enumerate(("rocket", "astronaut", "chelsea", "coffee"))
    ]
    found = matched(likeness, files)
    assert [one.prompt for one in found] == [4, None, 0, 1]
    assert [one.doubt is None for one in found] == [True, False, True, True]
    assert found[0].likeness is not None
    assert found[0].likeness["ms_ssim"] > 0.4
    assert "is not clearly like what any prompt draws; most like prompt" in str(found[1].doubt)


def test_of_two_pictures_for_one_prompt_the_nearer_is_taken(likeness: Likeness, tmp_path: Path) -> None:
    cat = photo("chelsea")
    files = [
        save(tmp_path / "far.png", noisy(cat, 1, 30)),
        save(tmp_path / "near.png", noisy(cat, 2, 5)),
    ]
    far, near = matched(likeness, files)
    assert (near.prompt, near.doubt) == (0, None)
    assert (far.prompt, far.doubt) == (None, "another one is more like what prompt 0 draws")


def test_two_prompts_that_draw_one_picture_leave_a_doubt(likeness: Likeness, tmp_path: Path) -> None:
    pictures = drawn()
    pictures[7] = [noisy(photo("chelsea"), seed) for seed in (98, 99)]
    (one,) = matched(likeness, [save(tmp_path / "a.png", photo("chelsea"))], None, pictures)
    assert one.prompt is None
    assert "most like prompt " in str(one.doubt)
    assert {"0", "7"} <= set(str(one.doubt).replace(",", "").split())


def test_by_order_a_picture_of_another_prompt_is_doubtful(likeness: Likeness, tmp_path: Path) -> None:
    files = [
        save(tmp_path / f"{place}.png", photo(name))
        for place, name in enumerate(("chelsea", "rocket", "coffee", "grass"))
    ]
    found = matched(likeness, files, [0, 1, 4, 2])
    assert [one.prompt for one in found] == [0, 1, 4, 2], "what was said stays"
    assert [one.doubt for one in found] == [
        None,
        "is more like what prompt 4 draws",
        "is more like what prompt 1 draws",
        None,
    ]
    assert found[3].likeness is None, "nothing was drawn for prompt 2"
    # Two prompts with one training picture are no contradiction.
    pictures = drawn()
    pictures[7] = [noisy(photo("chelsea"), seed) for seed in (98, 99)]
    assert [one.doubt for one in matched(likeness, files[:1], [7], pictures)] == [None]


def test_without_anything_drawn_nothing_is_matched(likeness: Likeness, tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png", photo("chelsea"))]
    assert match_alike(files, {}, [], likeness) == [
        Matched(files[0], None, doubt="no memorized prompt was drawn")
    ]
    assert match_alike(files, {}, [], likeness, claimed={files[0]: 3}) == [Matched(files[0], 3)]


def test_of_many_prompts_the_right_one_is_among_the_compared(likeness: Likeness, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures: dict[int, list[Picture]] = {
        index: [generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)] for index in range(20)
    }
    pictures[13] = [noisy(photo("coffee"), 3)]
    (found,) = matched(likeness, [save(tmp_path / "x.png", photo("coffee"))], None, pictures)
    assert (found.prompt, found.doubt) == (13, None)


# ------------------------------------------------------------------------------------- files

PROMPTS = ["a cat, asleep", "a cup", 'a "rocket"']


def test_by_order_numbers_count_by_value(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    for name in ("img10.png", "img9.PNG", "IMG_2.jpg", "._img1.png", "notes.txt"):
        save(tmp_path / name, red) if name != "notes.txt" else (tmp_path / name).touch()
    found = find_targets(tmp_path, PROMPTS, "order")
    assert {index: path.name for index, path in found.pictures.items()} == {
        0: "img9.PNG", 1: "img10.png", 2: "IMG_2.jpg"
    }  # fmt: skip
    assert found.left == ()
    assert [path.name for path in find_targets(tmp_path, PROMPTS, "alike").left] == [
        "img9.PNG",
        "img10.png",
        "IMG_2.jpg",
    ]


def test_what_no_name_tells_is_kept_to_be_said(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    for name in ("0.png", "1.png", "3.png"):
        save(tmp_path / name, red)
    found = find_targets(tmp_path, PROMPTS)
    assert [path.name for path in found.left] == ["3.png"], "they count from 0"


@pytest.mark.parametrize(
    ("match", "files", "message"),
    [
        ("order", ["a.png"], "holds 1 pictures for 3 prompts; by order there must be one for each"),
        ("alike", [], "holds no pictures"),
        ("order", None, "targets_match order takes a folder"),
        ("alike", None, "targets_match alike takes a folder"),
        ("alike", ["bad.png"], r"bad\.png: is not a readable picture"),
    ],
)
def test_folders_that_will_not_do(
    tmp_path: Path, match: str, files: list[str] | None, message: str
) -> None:
    place = tmp_path / "t.csv" if files is None else tmp_path
    for name in files or ():
        save(tmp_path / name, np.zeros((8, 8, 3), dtype=np.uint8))
        if name.startswith("bad"):
            (tmp_path / name).write_bytes(b"bad")
    with pytest.raises(OptionError, match=message):
        find_targets(place, PROMPTS, match)  # type: ignore[arg-type]


@pytest.mark.parametrize("match", ["name", "order", "alike"])
def test_pictures_in_folders_are_said(tmp_path: Path, match: TargetsMatch) -> None:
    """As kohya's programs want them."""
    for folder in ("10_nasa astronaut", "5_cup"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    words = r"what lies in its folders \(10_nasa astronaut, 5_cup\) is not looked into"
    with pytest.raises(OptionError, match=words):
        find_targets(tmp_path, PROMPTS, match)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form(tmp_path: Path, forms: tuple[Form, Form]) -> None:
    """As macOS writes them."""
    one, other = forms
    prompts = [normalize(one, "a caf\u00e9")]
    there = save(tmp_path / normalize(other, "a caf\u00e9.png"), np.zeros((8, 8, 3), dtype=np.uint8))
    assert read_targets(tmp_path, prompts) == {0: there}
    (tmp_path / "t.csv").write_text(f"prompt,file\n{prompts[0]},{normalize(one, there.name)}\n")
    assert read_targets(tmp_path / "t.csv", prompts) == {0: there}


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for given, message in (
        ({"targets_match": "alike"}, "goes with targets, a folder"),
        ({"targets_match": "alike", "targets": tmp_path, "images": 0}, "compares with drawn pictures"),
        ({"targets_match": "luck"}, "unknown; use name, order, alike"),
    ):
        with pytest.raises(OptionError, match=message):
            Reporting(**given)  # type: ignore[arg-type]


def test_names_that_say_a_prompt_are_not_shown(tmp_path: Path) -> None:
    def shown(name: str) -> str:
        return shown_name(tmp_path / name, PROMPTS)

    for name in ("3.png", "DSC_1.png", "cup.png", "cat 12.png"):
        assert shown(name) == name
    for name in ("A_Cat_Asleep.png", "0007 a cat, asleep (copy).png", "cat asleep.png"):
        assert shown(name) == "(named by a prompt's text).png"


def test_a_template_is_filled_in_and_read(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "tables").mkdir()
    there = save(tmp_path / "pictures" / "x.png", photo("chelsea", 16))
    table = tmp_path / "tables" / "t.csv"
    write_template(table, PROMPTS, {2: there})
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["file"] for row in rows] == ["", "", "../pictures/x.png"]
    found = read_targets(table, PROMPTS)
    assert {index: path.resolve() for index, path in found.items()} == {2: there}
    write_template(table, PROMPTS, {}, overwrite=True)
    with pytest.raises(OptionError, match="no picture belongs to a prompt"):
        read_targets(table, PROMPTS)


# ------------------------------------------------------------------------------------- verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original and a pruned file, three memorized prompts, and pictures of any names."""
    folder = tmp_path_factory.mktemp("matching")
    model = write_small(folder / "model.safetensors", side=16)
    write_model(recognize(model), [Neuron(LAYER, 3)], folder / "clean.safetensors", {})
    (folder / "prompts.csv").write_text('prompt\n"a cat, asleep"\na cup\n"a ""rocket"""\n')
    (folder / "ordinary.txt").write_text("a boat\na hill\na cup of\n")
    (folder / "pictures").mkdir()
    for name, kind in (("DSC_1", "rocket"), ("DSC_2", "chelsea"), ("DSC_3", "astronaut")):
        save(folder / "pictures" / f"{name}.png", noisy(photo(kind), 1))
    return folder


def verify(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: object) -> Result:
    before = [[noisy(photo(kind), seed) for seed in range(2)] for kind in DRAWN.values()]
    ordinary = [[noisy(photo(kind), seed) for seed in range(2)] for kind in ORDINARY]
    answers = [before, ordinary, before, ordinary]
    monkeypatch.setattr("nemo_prune.report.gallery.open_pipeline", lambda *_: None)
    monkeypatch.setattr("nemo_prune.report.gallery.draw", lambda *_, **__: answers.pop(0))
    return run("verify", folder / "model.safetensors", folder / "clean.safetensors", "--prompts",
               folder / "prompts.csv", "--ordinary", folder / "ordinary.txt", "--seeds", "2",
               "--device", "cpu", "--images", "2", "--json", "--tau", "1", "--gate", "1",
               "--manifest", manifest_of(folder / "m.json", [3], prompts=3), *more)  # fmt: skip


def test_verify_says_what_was_matched_and_uses_no_doubtful_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.csv"
    result = verify(folder, monkeypatch, "--targets", folder / "pictures", "--targets-match", "alike",
                    "--report", tmp_path / "r.html", "--report", tmp_path / "r.md",
                    "--targets-template", table)  # fmt: skip
    assert result.exit_code == 1, result.output
    data = json.loads(result.stdout)
    told = {one["file"]: one["prompt"] for one in data["targets"]["pictures"]}
    assert told == {"DSC_1.png": 2, "DSC_2.png": 0, "DSC_3.png": None}
    has = ["target_before" in entry["pictures"] for entry in data["prompts"]]
    assert has == [True, False, True]
    words = " ".join(result.stderr.split())
    assert "training picture DSC_2.png: prompt 0, by likeness (ms_ssim " in words
    assert "training picture DSC_3.png: not used; is not clearly like what any prompt draws" in words
    assert "not used, as it is doubtful whose they are: DSC_3.png." in words
    for name in ("r.html", "r.md"):
        page = (tmp_path / name).read_text().replace("\\", "")
        assert "training picture DSC_2.png: prompt 0, by likeness" in page
        assert "training picture DSC_3.png: not used" in page
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [Path(row["file"]).name for row in rows] == ["DSC_2.png", "", "DSC_1.png"]
    assert set(read_targets(table, PROMPTS)) == {0, 2}


def test_by_order_verify_leaves_out_what_contradicts_the_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = verify(folder, monkeypatch, "--targets", folder / "pictures", "--targets-match", "order")
    data = json.loads(result.stdout)
    told = [(one["prompt"], one["doubt"]) for one in data["targets"]["pictures"]]
    assert told[:2] == [(0, "is more like what prompt 2 draws"), (1, "is more like what prompt 0 draws")]
    assert told[2] == (2, None), "nothing says that it is not"
    assert ["target_before" in entry["pictures"] for entry in data["prompts"]] == [False, False, True]


def test_a_template_takes_no_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nemo_prune.scoring.opening.open_engine", lambda *_: pytest.fail("loaded the model")
    )
    monkeypatch.chdir(tmp_path)
    result = verify(folder, monkeypatch, "--targets-template", "t.csv")
    assert result.exit_code == 0, result.output
    assert "wrote t.csv: 0 of 3 prompts have a picture; fill in the column file" in result.stderr
    assert [row["file"] for row in csv.DictReader(Path("t.csv").read_text().splitlines())] == [""] * 3
    again = verify(folder, monkeypatch, "--targets-template", "t.csv")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    save(tmp_path / "1.png", photo("coffee", 16))
    filled = verify(folder, monkeypatch, "--targets-template", "u.csv", "--targets", tmp_path,
                    "--targets-match", "name", "--overwrite")  # fmt: skip
    assert filled.exit_code == 2, "t.csv is the folder's table, and names no file"
    Path("t.csv").unlink()
    filled = verify(folder, monkeypatch, "--targets-template", "u.csv", "--targets", tmp_path)
    assert filled.exit_code == 0, filled.output
    assert [row["file"] for row in csv.DictReader(Path("u.csv").read_text().splitlines())] == [
        "",
        "1.png",
        "",
    ]


def test_a_note_names_ten_pictures_and_counts_the_others() -> None:
    pictures = [
        {"prompt": None, "file": f"{i}.png", "likeness": None, "doubt": "is named by no prompt"}
        for i in range(14)
    ]
    data = make_data() | {"targets": {"match": "name", "pictures": pictures}}
    (note,) = [one for one in notes(data) if one.startswith("Training pictures")]
    assert note.endswith("whose they are: 0.png, 1.png, 2.png, 3.png, 4.png, 5.png, 6.png, 7.png, "
                         "8.png, 9.png and 4 more.")  # fmt: skip
    assert len(target_lines(data)) == 14
