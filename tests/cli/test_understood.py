"""What people hand in by mistake is refused or said, in one line that names it; never half used."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rawfiles
from PIL import Image
from tiny import run

from nemo_prune.checkpoint.manifest import read_manifest
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.failures import Refused, one_line
from nemo_prune.cli.progress import progress
from nemo_prune.errors import NemoPruneError, OptionError
from nemo_prune.files.prompts import PromptList, read_prompts
from nemo_prune.options import Options
from nemo_prune.report.targets import find_targets, open_target, read_targets
from nemo_prune.scoring.calibration_file import read_calibration
from nemo_prune.scoring.journal import Journal
from nemo_prune.scoring.table import Table

STAND_INS = {
    "annex": (b"/annex/objects/SHA256E-s128--0123.txt\n", "git annex get"),
    "crypt": (b"\0GITCRYPT\0" + bytes(99), "is locked by git-crypt; run `git-crypt unlock`"),
    "lnk": (bytes.fromhex("4c00000001140200") + bytes(99), "is a shortcut"),
    "url": (b"[InternetShortcut]\r\nURL=file:///C:/x\r\n", "is a shortcut"),
    "link": (None, "git annex get"),
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return rawfiles.sd1(Path("m.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["apply", "m", "--manifest", "a", "-o", "o", "--manifest=b"], "--manifest"),
        (["apply", "m", "--manifest", "a", "-o", "o", "--output", "p"], "--output"),
        (["detect", "m", "--prompts", "p", "--csv", "a", "--csv", "b"], "--csv"),
        (["m", "--prompts", "p", "--manifest", "a", "--manifest", "b"], "--manifest"),
    ],
)
def test_a_second_file_where_one_is_taken(model: Path, arguments: list[str], name: str) -> None:
    result = run(*(str(model) if word == "m" else word for word in arguments))
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {name}: given twice; give it once\n")
    assert [*Path().iterdir()] == [model]


def test_flags_numbers_and_options_of_many_values_may_be_given_twice(model: Path) -> None:
    assert run("inspect", model, "--json", "--json").exit_code == 0
    result = run("check", model, "--prompts", "none-1.txt", "--seeds", "4", "--seeds", "5")
    assert "none-1.txt: no such file" in result.stderr
    result = run("check", model, "--prompts", "none-1.txt", "--prompts", "none-2.txt")
    assert "none-1.txt: no such file" in result.stderr


@pytest.mark.parametrize("columns", ["0", "-1", "00", ""])
def test_a_terminal_of_no_columns_is_of_unknown_width(
    model: Path, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "family: sd1" in run("inspect", model).output


@pytest.mark.parametrize("address", ["https://x.org/m.safetensors", "s3://b/m", "file:///tmp/m"])
def test_addresses_are_shown_as_typed(model: Path, address: str) -> None:
    for arguments in (["inspect", address], ["check", model, "--prompts", address]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr == (
            f"nemo-prune: {address}: URLs are neither read nor written; download it first\n"
        )


def test_of_outputs_an_address_is_to_be_uploaded_to(model: Path) -> None:
    result = run("apply", model, "--neurons", "0:1", "-o", "s3://b/m.safetensors")
    assert result.exit_code == 2
    assert "s3://b/m.safetensors: URLs are not written to; give a path, and upload" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--json", "inspect", "m"], "inspect --json m"),
        (["--overwrite", "apply", "m", "--manifest", "a", "-o", "o"],
         "apply --overwrite m --manifest a -o o"),
        (["-q", "check", "m", "--prompts", "p"], "check -q m --prompts p"),
        (["--strict", "inspect", "m"], "inspect --strict m"),
        (["-o", "out", "localize", "m", "--prompts", "p"], "localize -o out m --prompts p"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("model")
def test_options_before_the_verb(arguments: list[str], meant: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"options go behind the verb: nemo-prune {meant}" in " ".join(result.stderr.split())


def test_options_before_the_model_stay_where_they_are(model: Path) -> None:
    for words in (["-o", "diff", str(model)], [str(model), "-o", "diff"]):
        result = run("--prompts", "none.txt", *words)
        assert "none.txt: no such file" in result.stderr
    model.rename("demo")
    assert "none.txt: no such file" in run("--prompts", "none.txt", "-o", "o", "demo").stderr


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_a_verb_before_it(flag: str) -> None:
    assert run(flag, "apply").output == run("apply", flag).output != run(flag).output
    assert "Usage: main apply" in run(flag, "apply").output


@pytest.mark.parametrize("mark", ["^", "`", "n.json^"])
def test_marks_that_break_lines_in_other_shells(model: Path, mark: str) -> None:
    for more in ([], [mark]):
        result = run("apply", model, mark, "--neurons", "0:1", *more, "-o", "o.safetensors")
        assert result.exit_code == 2
        assert f"'{mark}': a mark by which another shell" in " ".join(result.stderr.split())
    assert [*Path().iterdir()] == [model]


def test_junit_by_another_name(model: Path) -> None:
    audit = ["audit", model, model, "--prompts", "p", "--report", "r.html"]
    for arguments in (["check", model, "--prompts", "p"], audit):
        result = run(*arguments, "--junit", "results.json")
        assert result.exit_code == 2
        assert "results.json is written as XML; name it results.xml" in " ".join(result.stderr.split())
    assert [*Path().iterdir()] == [model]


def test_a_file_of_somebody_else_leaves_one_line_and_a_junit_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *how: str(path) != str(model) and access(path, *how))
    result = run("check", model, "--prompts", "p.txt", "--junit", "j.xml")
    line = f"{model}: cannot be read (permission denied); change who may read it"
    assert (result.exit_code, result.stderr) == (2, f"nemo-prune: {line}\n")
    assert line in Path("j.xml").read_text()


def test_a_column_of_no_name(model: Path) -> None:
    result = run("check", model, "--prompts", "p.txt", "--prompt-column", "")
    assert result.exit_code == 2
    assert "--prompt-column" in result.stderr
    assert "is empty; give a name" in result.stderr


@pytest.mark.parametrize("name", ["tau", "gate"])
def test_thresholds_that_nothing_lies_above(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from nemo_prune.cli.options import Inputs

    odd: Any = SimpleNamespace(path=Path("m"))
    with pytest.raises(AttributeError):
        Inputs(odd, PromptList((), 0), Options(**{name: 1.0}), None).check()
    assert capsys.readouterr().err == (
        f"warning: --{name} 1: no score lies above 1, so nothing can be called memorized\n"
    )


def test_calibrating_on_too_few_names_their_file(model: Path) -> None:
    Path("three.txt").write_text("a\nb\nc\n")
    result = run("calibrate", model, "--prompts", "three.txt", "-o", "c.safetensors")
    assert result.exit_code == 2
    assert result.stderr.startswith("nemo-prune: three.txt: 3 calibration prompts say too little")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["detect", "m", "--prompts", "p", "--csv", "t.xlsx"],
            "t.xlsx is written as CSV; name it t.csv",
        ),
        (
            ["detect", "m", "--prompts", "p", "--csv", "t.csv.GZ"],
            "written as CSV; name it t.csv",
        ),
        (["localize", "m", "--prompts", "p", "-o", "n.zst"], "n.zst is written as JSON; name it n.json"),
        (["prune", "m", "--prompts", "p", "--neurons-csv", "t.parquet"], "is written as CSV"),
        (["verify", "m", "c", "--prompts", "p", "--targets-template", "t.json"], "is written as CSV"),
        (["localize", "m", "--prompts", "p", "-o", "n.csv"], "n.csv is written as JSON; name it n.json"),
        (["calibrate", "m", "-o", "c.json"], "c.json is written as safetensors; name it c.safetensors"),
        (
            ["apply", "m", "--neurons", "0:1", "-o", "c.json"],
            "c.json: has not the name of a model; end it",
        ),
        (["apply", "m", "--neurons", "0:1", "-o", "new/"], "new/ names a folder; name the file"),
        (["apply", "m", "--neurons", "0:1", "-o", "o", "--undo", "new/"], "new/ names a folder"),
    ],
)
def test_outputs_by_the_name_of_something_else(model: Path, arguments: list[str], words: str) -> None:
    result = run(*(str(model) if word == "m" else word for word in arguments))
    assert result.exit_code == 2
    assert words in result.stderr
    assert [*Path().iterdir()] == [model]


@pytest.mark.parametrize(
    ("word", "verb"),
    [("INSPECT", "inspect"), ("APPLY", "apply"), ("scan", "detect"), ("list", "inspect")],
)
def test_verbs_by_other_words(model: Path, word: str, verb: str) -> None:
    result = run(word, model)
    assert result.exit_code == 2
    assert f"No such command or file '{word}'. Did you mean '{verb}'?" in result.stderr
    assert "No such command or file 'foo'; --help lists commands" in run("foo", model).stderr
    swapped = run(model, "inspect", "--json")
    assert swapped.exit_code == 2
    told = " ".join(swapped.stderr.split())
    assert "the verb comes first: nemo-prune inspect" in told
    assert told.endswith("--json")


def test_a_folder_is_not_written_by_the_name_of_a_file() -> None:
    from nemo_prune.checkpoint.apply import check_model_output

    folder: Any = SimpleNamespace(is_folder=True, path=Path("sd"))
    with pytest.raises(NemoPruneError, match="of a folder comes a folder; name it out, or give"):
        check_model_output(folder, Path("out.safetensors"))


def test_a_narrow_terminal_cuts_no_column_off(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [line for line in run("inspect", model).stdout.splitlines() if "\u2502" in line]
    cells = [line.split("\u2502") for line in rows]
    assert [row[1].strip() for row in cells if row[1].strip()][:2] == ["0", "1"]
    assert cells[0][5].strip() == "-"


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("kind", STAND_INS)
def test_what_stands_where_a_file_is_meant_is_said(kind: str) -> None:
    """As a model, a list, a manifest, a calibration and a training picture."""
    content, words = STAND_INS[kind]
    for path in (x := Path("x")), Path("t/0.png"):
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.symlink_to(".git/annex/objects/Xk/x/x")
        else:
            path.write_bytes(content)
    for read in (
        lambda: open_checkpoint(x),
        lambda: read_prompts(x),
        lambda: read_manifest(x),
        lambda: read_calibration(x),
        lambda: read_targets(Path("t"), ["a cat"]),
    ):
        with pytest.raises(NemoPruneError) as caught:
            read()
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"PK\3\4" + bytes(99), "is a zip archive; unpack it")]
)
def test_a_calibration_as_it_was_handed_over(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(NemoPruneError, match=words):
        read_calibration(tmp_path / "c")


@pytest.mark.parametrize("word", ["a/b", "m.ckpt", "./none"])
@pytest.mark.usefixtures("model")
def test_a_model_that_is_not_there_is_named_before_options(word: str) -> None:
    assert f"{Path(word)}: no such file; " in run(word).stderr
    assert run(word, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "MODEL", "--prompts", "p"], "'--model'. A model is named without one"),
        (["/?"], "'/?' shows no help here; --help does"),
        (["apply", "/?"], "'/?' shows no help here; --help does"),
        (["MODEL", "--neurons", "0:1", "-o", "x"], "No such option '--neurons'. apply has it."),
        (
            ["restore", "o", "--manifest", "m", "-o", "x"],
            "A manifest holds no rows; give --undo",
        ),
        (["inspect", "-m", "MODEL"], "'-m'. A model is named without one"),
        (["apply", "MODEL", "--neurons", "0:1", "-o", "o", "--force"], "Did you mean '--overwrite'?"),
        (["verify", "MODEL", "o", "--prompts", "p", "--card", "c.docx"], "is written as Markdown"),
    ],
)
def test_options_of_other_programs(model: Path, arguments: list[str], words: str) -> None:
    Path("p").write_text("a cat\n")
    assert run("apply", model, "--neurons", "0:1", "-o", "o").exit_code == 0
    result = run(*(str(model) if one == "MODEL" else one for one in arguments))
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_pictures_that_are_counted_from_one(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(
        OptionError, match=r"numbered from 1 to 2, prompts from 0 to 1, .* targets_match o"
    ):
        find_targets(tmp_path, ["a cat", "a dog"])
    assert len(find_targets(tmp_path, ["a cat", "a dog"], "order").pictures) == 2
    assert set(find_targets(tmp_path, ["a cat", "a dog", "a cow"]).pictures) == {1, 2}


def test_tables_of_pictures_by_their_names(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.tsv").write_text("prompt\tfile\na cat; asleep, at noon\ta.png\n")
    for place in (tmp_path, tmp_path / "t.tsv"):
        assert read_targets(place, ["a cat; asleep, at noon"]) == {0: tmp_path / "a.png"}
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(OptionError, match=r"t\.json: is no table that is read; give a folder, or a CSV"):
        read_targets(tmp_path / "t.json", ["a cat"])


def test_two_pictures_of_one_prompt(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    path = tmp_path / "t.csv"
    path.write_text("caption,image\na cat,a.png\na cat,a.png\n")
    assert read_targets(path, ["a cat"]) == {0: tmp_path / "a.png"}
    path.write_text("caption,image\na cat,a.png\na cat,b.png\n")
    with pytest.raises(NemoPruneError, match=r"names two pictures for one prompt, a\.png and b\.png"):
        read_targets(path, ["a cat"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("00000.jpg", "00000.png"), r"00000\.jpg and 00000\.png"),
        (("0.png", "00.png"), r"0\.png and 00\.png"),
        (("0.png", "a cat.png"), r"0\.png and \(named by a prompt's text\)\.png"),
    ],
)
def test_two_pictures_of_one_prompt_in_a_folder(
    tmp_path: Path, names: tuple[str, str], words: str
) -> None:
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(NemoPruneError, match=f"names two pictures for one prompt, {words}; keep one"):
        find_targets(tmp_path, ["a cat", "a dog"])
    for match in ("order", "alike"):  # by which a picture's name says nothing
        assert find_targets(tmp_path, ["a cat", "a dog"], match)


def test_a_folder_in_the_way_of_an_unfinished_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv.partial").mkdir()
    for resume in (False, True):
        with pytest.raises(NemoPruneError, match="partial: is a folder where a file is to be written"):
            Table(tmp_path / "t.csv", resume=resume).check()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv.partial"]


def test_a_journal_that_could_not_be_begun_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nemo_prune.scoring.journal._append", full)
    with pytest.raises(NemoPruneError, match="No space left"):
        Journal.open(tmp_path / "j", {"a": "b"}, resume=False)
    assert not list(tmp_path.iterdir())


def test_what_turns_a_line_round_is_escaped() -> None:
    assert one_line("a\u202eb\ufeff\u200b👩\u200d🚀") == "a\\u202eb\\ufeff\\u200b👩\u200d🚀"


def test_names_between_colons_stay_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=False) as shown:
        shown.note("p:x:q.txt: a <lora:dog:1>")
    assert "p:x:q.txt: a <lora:dog:1>" in capsys.readouterr().err


def test_forced_colours_make_no_bar_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress(quiet=False) as shown:
        shown.stage("searching", 3, "prompts")
        shown.advance()
    assert capsys.readouterr().err == "searching: 3 prompts\n"


def test_of_several_models_the_one_that_failed_is_named(model: Path) -> None:
    failed = OptionError("cal.safetensors: is of another model")
    assert str(Refused({model: failed})) == "m.safetensors: cal.safetensors: is of another model"


def test_pictures_of_sixteen_bits_are_read_by_their_upper_eight(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")
    found = open_target(tmp_path / "0.png", 64, 64)
    assert np.abs(found[..., 0].astype(int) - (grey >> 8)).max() <= 1


def test_pictures_that_nothing_can_be_said_of(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "0.tiff")
    Image.new("RGB", (1, 1)).save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    for name, words in (
        ("0.tiff", "is not a readable picture"), ("1.png", "is 1x1 pixels"),
        ("2.png", "is not a regular file"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=words):
            open_target(tmp_path / name, 64, 64)


def test_pictures_of_a_kind_that_is_not_read_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0.heic").write_bytes(b"")
    for match in ("name", "order", "alike"):
        with pytest.raises(OptionError, match=r"0\.heic: cannot be read; save it as PNG"):
            find_targets(tmp_path, ["a cat"], match)
