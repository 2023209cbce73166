"""What people hand in by mistake is refused or said, in one line that names it; never half used."""

import errno
import gzip
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rawfiles
from click.testing import Result
from PIL import Image
from test_cli_files import manifest, sha256
from test_surgery import DOWN
from tiny import run, write_tiny

from nemo_prune.checkpoint.manifest import read_manifest
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.failures import Refused, one_line
from nemo_prune.cli.progress import progress
from nemo_prune.errors import CheckpointError, NemoPruneError, OptionError, PromptFileError
from nemo_prune.files.prompts import PromptList, read_prompts
from nemo_prune.files.streams import Lists, PromptStream
from nemo_prune.model.configs import METADATA_KEY
from nemo_prune.options import Options
from nemo_prune.report.inputs import check_inputs
from nemo_prune.report.targets import find_targets, open_target, read_targets
from nemo_prune.scoring.calibration_file import read_calibration
from nemo_prune.scoring.journal import Journal
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.table import Table


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return rawfiles.sd1(Path("m.safetensors"))


# ------------------------------------------------------------------------------- command line


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


@pytest.mark.parametrize(
    ("start", "by"), [(b"Salted__", "openssl"), (b"age-encryption.org/v1\n", "age")]
)
def test_encrypted_files_are_to_be_decrypted(model: Path, start: bytes, by: str) -> None:
    Path("e").write_bytes(start + b"\x93\0" * 99)
    for arguments in (["restore", model, "--undo", "e", "-o", "o"], ["inspect", "e"]):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (
            2, f"nemo-prune: e: is encrypted by {by}; decrypt it\n"
        )  # fmt: skip


def test_an_encrypted_list_is_to_be_decrypted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"Salted__" + b"\x93" * 99)
    with pytest.raises(PromptFileError, match="is encrypted by openssl"):
        read_prompts(tmp_path / "p.txt")


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


# ------------------------------------------------------------------------------- manifests


def taken(model: Path, path: Path) -> Iterator[Result]:
    """What apply, and diff, say of a manifest."""
    yield run("apply", model, "--manifest", path, "-o", "o")
    yield run("diff", model, model, "--expect", path)


def test_a_manifest_that_contradicts_itself(model: Path) -> None:
    path = manifest(Path("n.json"), [], prompts=[[(DOWN, 1)]])
    for result in taken(model, path):
        assert result.exit_code == 2
        assert "n.json: lists neurons of its prompts, and none to remove" in result.stderr


def test_a_pruned_copy_of_what_a_manifest_was_made_for_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)], sha256(model))
    assert "warning" not in run("apply", model, "--manifest", path, "-o", "o").stderr
    result = run("apply", "o", "--manifest", path, "-o", "p")
    assert "(other.safetensors), but by its metadata a pruned copy of it\n" in result.stderr


def test_layers_without_anything_are_said(model: Path) -> None:
    assert "wholly zero" not in run("inspect", model).stdout
    every = ",".join(f"0:{row}" for row in range(4))
    assert run("apply", model, "--neurons", every, "-o", "o").exit_code == 0
    assert "1 of 16 value layers are wholly zero: is the file complete?" in run("inspect", "o").stdout


def test_a_part_of_a_folder_names_the_folder(tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    (tmp_path / "te").mkdir()
    part = rawfiles.write(tmp_path / "te" / "model.safetensors", [(name, "F32", (2, 2))])
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(part)
    assert str(caught.value).endswith(f", or the diffusers folder that it is a part of ({tmp_path})")


def test_a_manifest_of_nothing_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [], prompts=[[]])
    for result in taken(model, path):
        assert result.exit_code == 0
        assert "warning: n.json: holds no neurons: nothing is pruned\n" in result.stderr


AROUND = [
    "3f2a91c0-8b1d-4e6f-9a0b-aa {}", "[12:34:50] {}", "12:34:50 | generating: {}", "001_{}", "No. 1: {}",
    "**Prompt 1:** {}", "00000-3141592653-{}", "{} --w 512 --h 512 --d 1", '"{}" -s50 -S123 -W512 -C7.5',
    '!dream "{}" -n 4 -g', "/imagine prompt: {}", "{}::2 blurry::-0.5", "{} AND a cat :0.5",
    "{} [blurry, low quality]", "{} https://a.b/c.jpg", "[{}](https://x)", "<caption>{}</caption>",
    "<|startoftext|>{}", "[CLS] {} [SEP]", "prompt0 = {}", 'PROMPT_0="{}"', "caption = {}",
    "{} (score: 0.93)", "{}, seed: 4711, steps: 30", "{}  # verbatim", "{} & 0.93 & VM \\\\", "a%20{}",
    "Q: {}", '"0" :"{}",', "photo ||| {}",
]  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("count", [1, 3])
def test_what_stands_around_a_caption_is_said(tmp_path: Path, around: str, count: int) -> None:
    """By what captions seldom hold, whichever program wrote it."""
    texts = [around.format(one) for one in ("A Cat, Asleep", "Clock by Wayfair", "Coins 7")[:count]]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"caption": one}) for one in texts))
    for name, unit in (("p.txt", "lines"), ("p.jsonl", "prompts")):
        notes = read_prompts(tmp_path / name).notes
        assert any(f"{count} of its {unit}" in note for note in notes), notes
        stream = Lists((tmp_path / name,)).stream()
        assert len(next(iter(stream.blocks(256))).prompts) == count
        assert any(f"{count} of its {unit}" in note for note in stream.notes)


APART = [
    "n0144{n} {}", "B07XJ{n} {}", "a1b2c{n} {}", "SKU-443{n} {}", "P{n} {}", "4711{n} {}", "v1.{n} {}",
    "28.11.2{n} {}", "A{n}. {}", "\u2460 {}", "{}|{n}", "{} img{n}.jpg", "{} a.jpg", "{} VM",
    "{} memorized", "{};", "\u201c{}\u201d", "'{}'", "// {}", "{n}\u3001{}",
]  # fmt: skip
APART_IN_LISTS = [
    "{n} {}", "{n}- {}", "Prompt {n} {}", "12:3{n} {}", "{} 81{n}", "{} (#{n})", "{}, 1", "{},",
    "{}...", "1 {}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("around", "count"), [(a, n) for a in APART for n in (1, 3)] + [(a, 3) for a in APART_IN_LISTS]
)
def test_what_stands_apart_from_a_caption_is_said(tmp_path: Path, around: str, count: int) -> None:
    """Identifiers, numbers, labels and marks, with whatever mark or blank between."""
    captions = ("A Cat, Asleep", "Clock by Wayfair", "Coins and a Lamp")[:count]
    texts = [around.format(caption, n=n) for n, caption in enumerate(captions, 1)]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    (note,) = read_prompts(tmp_path / "p.txt").notes
    assert f"{count} of its lines" in note
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"caption": one}) for one in texts))
    assert read_prompts(tmp_path / "p.jsonl").notes


@pytest.mark.parametrize(
    "lines",
    [
        ["2 dogs", "1980s car", "3D render of a cat", "4k photo", "16:9 picture"],
        ["1girl, solo", "2girls, 8k"],
        ["12 monkeys"],
        ["4k photo of a dog"],
        ["1980s car"],
        ["a cat, 8k", "a dog in 1968", "R2-D2 on a beach"],
        ["B-52 in the sky", "a cat", "a dog"],
        [" " * 600 + "a cat", "a dog"],
        ['The "Cat" 3', '\'Tis a "dog" house', '"Lamp" by a painter'],
    ],
)
def test_captions_with_numbers_and_quotations_are_not_said(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines))
    assert read_prompts(path).notes == ()


@pytest.mark.parametrize(
    "line", ['"{n}" "{}" 81', '{n} "{}" 81', '"{}" 81', "'a' '{}'", '{n} "{}" VM', '"a \\"b\\"" "{}" NA']
)
@pytest.mark.parametrize("head", ["", '"caption" "n"\n', " caption n\n", '"caption"\n'])
@pytest.mark.parametrize("count", [1, 3])
def test_cells_in_quotes_between_blanks_are_a_table(
    tmp_path: Path, line: str, head: str, count: int
) -> None:
    if count == 1 and '"n"' not in head:
        head = ""  # of two lines, one is not most
    texts = [line.format(caption, n=n) for n, caption in enumerate(("A cat", "B", "C, d")[:count], 1)]
    (tmp_path / "p.txt").write_text(head + "\n".join(texts))
    for read in (read_prompts, lambda path: list(PromptStream([path]).blocks(9))):
        with pytest.raises(PromptFileError, match="is a table separated by blanks, with cells in quo"):
            read(tmp_path / "p.txt")


@pytest.mark.parametrize(("name", "head"), [("p.jsonl", '"caption"'), ("p.txt", "id caption")])
def test_a_header_in_quotes_or_of_several_columns_is_said(tmp_path: Path, name: str, head: str) -> None:
    (tmp_path / name).write_text(f'{head}\n"a cat on a mat"\n"a dog"\n')
    assert any(
        "its first line is a column's name" in note for note in read_prompts(tmp_path / name).notes
    )


@pytest.mark.parametrize("name", ["captions.gsheet", "p.json"])
def test_a_pointer_to_a_document_of_google_is_no_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"":"WARNING! DO NOT EDIT","doc_id":"1aB2","resource_key":""}')
    with pytest.raises(PromptFileError, match=r"points to a Google document .*; download that as CSV"):
        read_prompts(tmp_path / name)


def test_what_is_no_text_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("portrait.of.nasa.astronaut.eileen.collins\n")
    (note,) = read_prompts(tmp_path / "p.txt").notes
    assert "no blank between words" in note
    (tmp_path / "p.txt").write_bytes(b"\0GITCRYPT\0\x93\xfe")
    with pytest.raises(PromptFileError, match="is locked by git-crypt"):
        read_prompts(tmp_path / "p.txt")


STAND_INS = {
    "annex": (b"/annex/objects/SHA256E-s128--0123.txt\n", "git annex get"),
    "crypt": (b"\0GITCRYPT\0" + bytes(99), "is locked by git-crypt; run `git-crypt unlock`"),
    "lnk": (bytes.fromhex("4c00000001140200") + bytes(99), "is a shortcut"),
    "url": (b"[InternetShortcut]\r\nURL=file:///C:/x\r\n", "is a shortcut"),
    "link": (None, "git annex get"),
}


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cinematic still {prompt} . emotional", "they are templates"),
        ("a photo of a [name], [filewords]", "they are templates"),
        ("Caf\u00c3\u00a9 at night", "look like UTF-8 read as Windows-1252"),
        ("Pompeii \u00e2\u20ac\u201c Brooklyn Museum", "look like UTF-8 read as Windows-1252"),
        ("\u00d0\u0178\u00d1\u20ac\u00d0\u00b8", "look like UTF-8 read as Windows-1252"),
        ("a) a cat on a mat", "letters or times in front"),
        ("a cat on\na mat\n\na dog in\nthe sun", "its 4 lines stand in paragraphs"),
        ("a cat on a mat; a dog; a bird", "is one line of several parts"),
        (
            "CAF\u00c9\u00ae \u00abCAF\u00c9\u00bb \u00e0 la carte, S\u00e3o Tom\u00e9\u2026\n\nan eye",
            "",
        ),
    ],
)
def test_lists_of_something_else_are_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    assert [words in note for note in read_prompts(tmp_path / "p.txt").notes] == (
        [True] if words else []
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"prompts": ["ENC[AES256_GCM,data:x,type:str]"], "sops": {}}',
            "is encrypted by SOPS; decrypt it",
        ),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", "is a key or encrypted"),
        ("$ANSIBLE_VAULT;1.1;AES256\n6263\n", "is encrypted by Ansible"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.txt"])
def test_encrypted_lists_are_refused_as_such(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptFileError, match=words):
        read_prompts(tmp_path / name)


def test_what_json_prints_is_no_manifest(model: Path) -> None:
    printed = {"version": "0", "source": {}, "prompts": [], "neurons": [], "cost": {}}
    Path("found.json").write_text(json.dumps(printed))
    for result in taken(model, Path("found.json")):
        assert result.exit_code == 2
        assert "found.json: is the result that a run prints, not its manifest" in result.stderr


@pytest.mark.parametrize("name", ["u.yaml", "u.json", "u.txt"])
def test_undo_files_by_the_name_of_text(model: Path, name: str) -> None:
    result = run("apply", model, "--neurons", "0:1", "-o", "o.safetensors", "--undo", name)
    assert f"{name}: has the name of another format" in result.stderr
    assert [*Path().iterdir()] == [model]
    Path(name).write_text("a: \u00e4\n")
    result = run("restore", model, "--undo", name, "-o", "o.safetensors")
    assert result.stderr == f"nemo-prune: {name}: is text, and nothing that --undo wrote; give that\n"


@pytest.mark.parametrize("word", ["a/b", "m.ckpt", "./none"])
@pytest.mark.usefixtures("model")
def test_a_model_that_is_not_there_is_named_before_options(word: str) -> None:
    assert f"{Path(word)}: no such file; " in run(word).stderr
    assert run(word, "--help").exit_code == 0


@pytest.mark.parametrize("name", ["adapter_config.json", "pytorch_lora_weights.safetensors"])
def test_a_folder_with_a_lora(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"holds a LoRA or the like \({name}\); merge it"):
        open_checkpoint(tmp_path)


def test_a_zip_archive_is_no_pickle(model: Path) -> None:
    Path("m.zip").write_bytes(b"PK\x03\x04" + b"x" * 100)
    assert "m.zip: is a zip archive; unpack it" in run("inspect", "m.zip").stderr
    assert "is a zip archive" in run("restore", model, "--undo", "m.zip", "-o", "o").stderr


def test_colours_of_a_terminal_are_no_caption(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n\x1b[35ma dog\x1b[m\n")
    with pytest.raises(PromptFileError, match="number 2 of its lines holds colours of a terminal"):
        read_prompts(tmp_path / "p.txt")


def test_cells_are_looked_at_as_lines_are(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,caption\n1,img/0.txt\n2,img/1.txt\n")
    with pytest.raises(PromptFileError, match="2 of its prompts begin with the name of a picture"):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(PromptFileError, match="2 of its prompts begin with the name of a picture"):
        list(Lists((tmp_path / "p.csv",)).stream().blocks(256))


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


def test_a_layer_is_named_as_diff_names_it(model: Path) -> None:
    assert run("apply", model, "--neurons", f"{DOWN}:1", "-o", "o.safetensors").exit_code == 0
    told = run("diff", model, "o.safetensors").output
    name = next(word.strip(":,'") for word in told.split() if "to_v.weight" in word)
    for layer in (name, name.removesuffix(".weight")):
        result = run("apply", model, "--neurons", f"{layer}:1", "-o", "p.safetensors", "--overwrite")
        assert result.exit_code == 0, result.stderr
        assert Path("p.safetensors").read_bytes() == Path("o.safetensors").read_bytes()


def test_a_part_of_what_was_found_is_said(model: Path) -> None:
    path = manifest(
        Path("n.json"), [(DOWN, 1), (DOWN, 2)], prompts=[[(DOWN, 1), (DOWN, 2)], [(DOWN, 1)]]
    )
    result = run("apply", model, "--manifest", path, "--top-k", 1, "-o", "o")
    assert "note: 1 of the manifest's 2 neurons are left in" in result.stderr
    assert "nemo-prune verify" in result.stderr
    result = run("apply", model, "--manifest", path, "--top-k", 2, "-o", "o", "--overwrite")
    assert "left in" not in result.stderr


def test_neurons_that_no_prompt_of_a_manifest_needs_are_said(model: Path) -> None:
    neurons = [(DOWN, 1), (DOWN, 2), (DOWN, 3)]
    path = manifest(Path("n.json"), neurons, prompts=[[(DOWN, 1)], [(DOWN, 2)]])
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.exit_code == 0
    assert "note: 1 of the manifest's 3 neurons are no prompt's\n" in result.stderr


def test_metadata_that_say_what_was_done_are_named_as_the_only_other_change(tmp_path: Path) -> None:
    model = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"modelspec.hash_sha256": "0x0"})
    path = manifest(tmp_path / "n.json", [(DOWN, 1)])
    assert run("apply", model, "--manifest", path, "-o", tmp_path / "o").exit_code == 0
    result = run("diff", model, tmp_path / "o", "--expect", path)
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "as expected: 1 rows are zero, and nothing else was changed but metadata that say so "
        "(modelspec.hash_sha256, nemo_prune.*)\n"
    )


def test_a_manifest_of_a_run_that_was_stopped_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)], prompts=[[(DOWN, 1)], []])
    path.write_text(path.read_text().replace('"suppressed"', '"not confirmed"', 1))
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.exit_code == 0
    assert "warning: n.json: is of a run that was stopped: 1 of its 2 prompts" in result.stderr


def test_a_row_that_the_model_lacks_names_the_manifest(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 99)], model=open_checkpoint(model).kind)
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.stderr.startswith(f"nemo-prune: n.json: does not fit {model} (")
    assert "another model" not in result.stderr
    result = run("diff", model, model, "--expect", path)
    assert (result.exit_code, result.stderr.partition(": m")[0]) == (2, "nemo-prune: n.json")
    good = manifest(Path("n.json"), [(DOWN, 1)])
    result = run("apply", model, "--manifest", good, "--top", 1, "-o", "o")
    assert result.stderr.startswith("nemo-prune: n.json: holds no attributions")


def test_a_lora_that_would_do_nothing(model: Path) -> None:
    assert run("apply", model, "--neurons", "0:1", "-o", "clean.safetensors").exit_code == 0
    result = run("apply", "clean.safetensors", "--neurons", "0:1", "--lora", "l.safetensors")
    assert result.exit_code == 2
    assert "are zero in clean.safetensors already, so there is no LoRA to write" in result.stderr
    assert not Path("l.safetensors").exists()


# ------------------------------------------------------------------------------- models


def test_what_only_goes_with_a_model_is_called_so(model: Path) -> None:
    assert (
        run("apply", model, "--neurons", "0:1", "-o", "c", "--undo", "u", "--lora", "l").exit_code == 0
    )
    for arguments in (["inspect", "u"], ["diff", model, "u"], ["diff", "u", model]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "nemo-prune: u: is what --undo kept, the rows removed from a model; give" in result.stderr
    result = run("diff", model, "l")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nemo-prune: l: is a LoRA (or the like), an addition to a model" in result.stderr
    assert run("diff", "l", "l").exit_code == 0


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["unet.down_blocks.0.a.attn2.to_v.weight", "vae.x"],
            "whose parts a program saved under its own",
        ),
        (["vision_model.x", "text_decoder.bert.x"], "is a captioner"),
    ],
)
def test_models_of_other_kinds(tmp_path: Path, names: list[str], words: str) -> None:
    path = rawfiles.write(tmp_path / "m.safetensors", [(name, "F32", (8, 8)) for name in names])
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


def _further_inputs(path: Path, scale: float) -> Path:
    """A UNet alone of 8 input channels, with the layer norms before its value layers at `scale`."""
    entries = rawfiles.unet(rawfiles.SD1, "diffusers", "F16", in_channels=8)
    norms = [n.replace("attn2.to_v", "norm2") for n, _, _ in entries if "to_v" in n]
    entries += [(name, "F16", (2,)) for name in norms] + [("conv_out.weight", "F16", (4, 4, 3, 3))]
    return rawfiles.write(path, entries, values=dict.fromkeys(norms, struct.pack("<2e", scale, -scale)))


def test_differences_to_a_model_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _further_inputs(Path("m.safetensors"), 0.01)
    Path("p.txt").write_text("a cat\n")
    for arguments in (
        ["apply", "m.safetensors", "--neurons", "0:1", "-o", "o.safetensors"],
        ["apply", "m.safetensors", "--neurons", "0:1", "--lora", "o.safetensors"],
        ["check", "m.safetensors", "--prompts", "p.txt", "--tau", ".5", "--gate", ".5"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "m.safetensors: holds differences to a model and no model" in result.stderr
        assert "its UNet takes 8 channels" in result.stderr
    assert not Path("o.safetensors").exists()
    assert "family: sd1 (differences to a model)" in run("inspect", "m.safetensors").output


def test_further_input_channels_are_said_before_a_text_encoder_is_asked_for(tmp_path: Path) -> None:
    path = _further_inputs(tmp_path / "m.safetensors", 1.0)
    with pytest.raises(CheckpointError, match="takes 8 channels, so it draws from more than text"):
        open_engine(open_checkpoint(path), Options(device="cpu"))
    assert run("apply", path, "--neurons", "0:1", "-o", tmp_path / "o.safetensors").exit_code == 0


def test_packed_models_and_lists_are_called_so(model: Path) -> None:
    Path("g.safetensors").write_bytes(gzip.compress(model.read_bytes()))
    Path("p.txt").write_text("a cat on a mat in the sun\n")
    for name, words in (
        ("g.safetensors", "is compressed with gzip; unpack it"),
        ("p.txt", "is text, not safetensors; download or copy it again; a list of prompts, and each "
                  "further one, needs --prompts before it"),
    ):  # fmt: skip
        result = run("inspect", name)
        assert result.exit_code == 2
        assert f"nemo-prune: {name}: {words}" in result.stderr


def test_metadata_beyond_what_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_prune.files.header.MAX_HEADER_BYTES", 100)
    assert "as of very large metadata (at most 100 are read)" in run("inspect", model).stderr


def test_heads_that_nothing_tells_are_not_guessed(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "untold", metadata={METADATA_KEY: "{}"})
    with pytest.raises(CheckpointError, match="nothing says how many attention heads its UNet has"):
        open_engine(open_checkpoint(path), Options(device="cpu"))


def test_a_model_is_not_judged_against_itself(model: Path) -> None:
    Path("copy.safetensors").write_bytes(model.read_bytes())
    for other in (model, Path("copy.safetensors")):
        with pytest.raises(NemoPruneError, match="or the same bytes; give the original"):
            check_inputs(open_checkpoint(model), open_checkpoint(other), ["a"], None)


def test_a_pruned_model_given_for_the_original(model: Path) -> None:
    assert run("apply", model, "--neurons", f"{DOWN}:3", "-o", "c.safetensors").exit_code == 0
    pruned = open_checkpoint(Path("c.safetensors"))
    with pytest.raises(OptionError, match="has rows of zeros that m"):
        check_inputs(pruned, open_checkpoint(model), ["a"], None)


def test_configs_with_a_byte_order_mark(tmp_path: Path) -> None:
    from nemo_prune.files.strict_json import read_object
    from nemo_prune.model.configs import read_config

    path = tmp_path / "unet" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"sample_size": 16}), encoding="utf-8-sig")
    assert read_object(path) == read_config(tmp_path, "unet") == {"sample_size": 16}


# ------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (["1. a cat", "2. a dog", "3. a cow"], "3 of its lines begin with a number that counts up"),
        (["1) a cat", "2) a dog", "3) a cow", "x"], "3 of its lines begin with a number"),
        (["- a cat", "* a dog"], "2 of its lines begin as items of a list"),
        (["\u2022\ta cat", "\u2022\ta dog"], "2 of its lines begin as items of a list"),
        (["# captions", "a cat"], "1 of its lines begin with #, as comments do"),
        (["a cat", "Negative prompt: bad", "Steps: 20, Seed: 1"], "2 of its lines begin as a picture's"),
        (["0.jpg: a cat", "a dog", "a cow"], "1 of its lines begin with the name of a picture"),
        (["a cat", "a dog", "a cow", "======="], "1 of its lines are rules (===, ---)"),
        (["4711: a cat", "42: a dog"], "2 of its lines begin with a number or an identifier"),
        ([" 0 | a cat", " 1 | a dog"], "2 of its lines begin with a number or an identifier"),
        (["caption: a cat", "caption: a dog"], "2 of its lines begin with one word and a colon"),
        (
            ["2024-01-01 10:00:01 a cat", "[2024-01-01T10:00] a dog"],
            "2 of its lines begin with a date and time",
        ),
        (["0.98 a cat", "0.75 a dog"], "2 of its lines begin or end with a decimal number"),
        (["a cat", "NULL", "nan"], "2 of its lines are NULL, None, an error"),
        (["000000397133", "000000037777"], "2 of its lines are, or begin with, identifiers or hashes"),
        (["a) a cat", "b) a dog"], "2 of its lines begin as items of a list"),
        (["https://x.org/0 a cat", "a dog"], "1 of its lines begin with an address"),
        (["(a cat:1.2)", "<lora:x:1> a dog", "a {red|blue} cow"], "3 of its lines hold weights, LoRAs"),
        (["a cat --ar 16:9 --v 5", "a dog"], "1 of its lines hold options (--ar 16:9)"),
        (["a cat|at night", "a dog|oil on wood|at sea", "a cow"], "2 of its lines hold bars (|)"),
        (["a cat|oil on wood|at night"], "1 of its lines hold bars (|) between words: several captions"),
        (["a cat | Poster", "a dog", "a cow"], None),
        (["500: a space odyssey", "a cat"], None),
        (["500: a space odyssey"], None),
        (["Forbidden City"], None),
        (["12:30 at night", "7:00 in the morning"], None),
        (["1,000 cats", "a film in 16:9 (16:9)", "a dog -- a friend"], None),
        (["WEBVTT", "00:00.000 --> 00:01.000", "a cat"], "1 of its lines begin as subtitles do"),
        (["1. a cat", "101 dalmatians", "3. a cow"], None),
        (["- a dash alone", "a cat", "a dog"], None),
        (["#hashtag", "7 cats", "8 dogs", "9 cows"], None),
    ],
)
def test_lines_that_hold_more_than_prompts(tmp_path: Path, lines: list[str], note: str | None) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines) + "\n")
    stream = PromptStream([path])
    assert sum(len(block.prompts) for block in stream.blocks(9)) == len(lines)
    for notes in (read_prompts(path).notes, stream.notes):
        assert [one.startswith(f"{path}: {note}") for one in notes] == ([] if note is None else [True])


def test_the_separator_that_excel_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b"sep=;\r\nid;caption\r\n1;a cat, asleep\r\n")
    read = read_prompts(path)
    assert (read.texts, read.places) == (("a cat, asleep",), ((str(path), 3),))
    (block,) = PromptStream([path]).blocks(9)
    assert [(one.text, one.line) for one in block.prompts] == [("a cat, asleep", 3)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "sep=;\nid;caption\n", "begins with sep=, as a table does; name it .csv"),
        ("p.txt", "a/0.jpg|a cat\n1.PNG,a dog\n", "2 of its lines begin with the name of a picture"),
        ("p.txt", "0.jpg\n1.jpg\n", "2 of its lines begin with the name of a picture"),
        ("p.txt", "https://x.org/a?b\ntrain/0.json\n", "2 of its lines are addresses or paths; give"),
        (
            "p.txt",
            " id | caption\n----+---------\n  0 | a cat\n(1 row)\n",
            "line 2 is of a table as databases",
        ),
        (
            "p.txt",
            "+----+\n| id |\n+----+\n",
            "line 1 is of a table .*; export it as CSV, or",
        ),
        ("p.txt", "caption | id\n:---: | ---\na cat | 0\n", "line 2 is of a table"),
        ("p.txt", "\u2502 id \u2502\n\u251c\u2500\u2500\u2500\u2500\u2524\n", "line 2 is of a table"),
        ("p.txt", "-[ RECORD 1 ]\ncaption | a cat\n", "line 1 is of a table"),
        ("p.txt", "a cat\n<<<<<<< HEAD\n=======\n>>>>>>> b", "line 2 is the mark of a merge conflict"),
        (
            "p.csv",
            "text\na cat\n>>>>>>> b\n",
            "line 3 is the mark of a merge conflict; resolve it first",
        ),
        ("p.txt", "|| id || caption ||\n| 0 | a cat |\n", "line 1 is of a table"),
        ("p.txt", "diff --git a/p b/p\n", "begins as a web page"),
        ("p.txt", "p.txt:1:a cat\n", "1 of its lines begin with the name of a picture or a text"),
        ("p.txt", "404: Not Found", "is what a server or a program says where .*; get the list again"),
        ("p.txt", "AccessDenied\n", "is what a server or a program says"),
        ("p.txt", '{"message": "Not Found"}', "is what a server or a program says"),
        ("p.txt", "curl: (22) The requested URL ...\n", "is what a server or a program says"),
        ("p.txt", "<Error><Code>AccessDenied", "begins as a web page"),
        ("p.sql", "INSERT INTO t", r"\.sql files are not read as lists"),
        ("p.csv", "text\ra cat\ra dog\r", "is not a readable CSV: line 1 has a carriage return that"),
        ("p.csv", "text\ra cat\r", ".*so several may be one; end lines with LF or CR LF"),
        (
            "p.txt",
            "\x10\0\0\0\0\0\0\0" + '{"a":{"dtype":1}}',
            "is not a list but a safetensors file; give text",
        ),
        ("p.json", "[]", "holds no prompts; its column or list of them is empty"),
        ("p", None, "is a folder; give the lists in it as a pattern in quotes, such as"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(PromptFileError, match=f"{path}: {words}"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\r\na dog\r\n\x1a"),
        ("p.txt", "a cat\na dog\x1a"),
        ("p.txt", "a cat\n\x1a\na dog\n"),
        ("p.csv", "text\r\na cat\r\na dog\r\n\x1a"),
        ("p.jsonl", '"a cat"\n"a dog"\n\x1a'),
        ("p.json", '["a cat", "a dog"]\x1a'),
    ],
)
def test_what_ends_a_text_of_dos_is_no_prompt(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_prompts(path).texts == ("a cat", "a dog")
    (block,) = PromptStream([path]).blocks(9)
    assert [one.text for one in block.prompts] == ["a cat", "a dog"]


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


# ------------------------------------------------------------------------------- what is shown


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


# ------------------------------------------------------------------------------- labels


def test_labels_as_pandas_writes_them_and_where_two_disagree(tmp_path: Path) -> None:
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("caption,label\na cat,1.0\na dog,0.0\n")
    assert read_prompts(path, labels=True).labels == (True, False)
    other.write_text("caption,label\na dog,1\n")
    with pytest.raises(PromptFileError, match=f"b.csv: line 2 labels .* than line 3 of {path}"):
        read_prompts([path, other], labels=True)


@pytest.mark.parametrize(("label", "word"), [(1, "memorized (1)"), (0, "ordinary (0)")])
def test_labels_that_are_all_alike_tell_nothing_apart(tmp_path: Path, label: int, word: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"caption,label\na cat,{label}\na dog,{label}\n")
    (note,) = read_prompts(path, labels=True).notes
    assert note == f"all labels are {word}, so there is no AUROC, TPR or accuracy to tell"
    assert read_prompts(path).notes == ()


@pytest.mark.parametrize(
    ("name", "said"), [("memorised", True), ("is_memorized", True), ("is_mem", True), ("likes", False)]
)
def test_columns_of_digits_whose_name_says_labels(tmp_path: Path, name: str, said: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"caption,{name}\na cat,1\na dog,0\n")
    notes = read_prompts(path, labels=True).notes
    assert [("looks like labels" in note) for note in notes] == [True] * said


# ------------------------------------------------------------------------------- pictures


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
