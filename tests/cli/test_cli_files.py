"""The verbs of the bytes world as a user runs them: apply, diff, restore, inspect."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import rawfiles
from click.testing import CliRunner
from folders import WEIGHTS, add_copy, pipeline, shard
from rawfiles import SD1, SD2, SDXL, parse, unet, write
from test_selection import NONE, table
from test_surgery import DOWN, KEYS, MID, TWINS, UP, nothing_left

from nemo_prune.checkpoint.neurons import short_name
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.main import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def manifest(path, neurons, sha256="0" * 64, prompts=(), **source):
    plain = [{"layer": layer, "row": row} for layer, row in neurons]
    records = [
        {
            "index": i, "status": "suppressed", "score_before": 0.7, "score_after": 0.1,
            "samples": 1, "truncated": False, "neurons": [{"layer": n, "row": r} for n, r in rows],
        }
        for i, rows in enumerate(prompts)
    ]  # fmt: skip
    path.write_text(json.dumps({
        "format": "nemo-prune-manifest/1", "version": "0", "options": {"tau": 0.4}, "neurons": plain,
        "source": {"path": "other.safetensors", "sha256": sha256, **source}, "prompts": records,
    }))  # fmt: skip
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def zeroed(path):
    layers = json.loads(run("inspect", path, "--json").stdout)["value_layers"]
    return {layer["name"]: layer["zeroed"] for layer in layers if layer["zeroed"]}


@pytest.fixture
def model(tmp_path):
    return rawfiles.sd1(tmp_path / "m", with_ema=True, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------- apply


def test_apply_by_hand(tmp_path, model):
    short = MID.removesuffix(".attn2.to_v")
    result = run("apply", model, "--neurons", f"0:1,{short}:7", "-o", tmp_path / "o", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["neurons"], told["rows_zeroed"], told["undo"]) == (2, 4, None)
    assert told["source"] == {"path": str(model), "sha256": sha256(model)}
    assert told["output"] == {"path": str(tmp_path / "o"), "sha256": None}
    assert "warning" not in result.stderr
    assert zeroed(tmp_path / "o") == {DOWN: [1], MID: [7]}
    assert "nemo_prune.prompts" not in parse(tmp_path / "o")[0]["__metadata__"]


SD1_AT_TRUE_WIDTHS = "sd1, 16 value layers with 12480 rows, 768 text channels"


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("other", ["SD2", "SDXL", "SD1 of other widths"])
def test_a_manifest_for_another_architecture_names_both(tmp_path, other, told):
    """Its neurons may all be there by name: SD2 has the same value layers as SD1."""
    shape = {"SD2": SD2, "SDXL": SDXL, "SD1 of other widths": SD1 | {"widths": (2, 6, 8, 8)}}[other]
    path = write(tmp_path / "m", unet(shape, dtype="F16", sdxl=other == "SDXL"))
    made_for = {"model": SD1_AT_TRUE_WIDTHS} if told else {}
    chosen = manifest(tmp_path / "n.json", [(DOWN, 1 if told else 3)], **made_for)
    result = run("apply", path, "--manifest", chosen, "-o", tmp_path / "o")
    if not told and other == "SD2":
        assert (result.exit_code, "warning" in result.stderr) == (0, True)
        return
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    family = "sdxl" if other == "SDXL" else other[:3].lower()
    assert f"{chosen}: was made for other.safetensors" in line
    assert f"another model than {path} ({family}, " in line
    assert (SD1_AT_TRUE_WIDTHS in line) == told
    assert not (tmp_path / "o").exists()


def test_a_manifest_for_the_same_architecture_warns_of_another_file_only(tmp_path, model):
    kind = open_checkpoint(model).kind
    assert kind == "sd1, 16 value layers with 98 rows, 5 text channels"
    chosen = manifest(tmp_path / "n.json", [(DOWN, 1)], model=kind)
    result = run("apply", model, "--manifest", chosen, "-o", tmp_path / "o")
    assert result.exit_code == 0
    assert f"warning: {model} is not the file that {chosen} was made for" in result.stderr
    assert zeroed(tmp_path / "o") == {DOWN: [1]}


@pytest.mark.parametrize("options", [["--hash"], ["--undo", "u"]])
def test_apply_tells_the_hash(tmp_path, model, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    result = run("apply", model, "--neurons", "0:1", "-o", "o", *options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["output"] == {"path": "o", "sha256": sha256(tmp_path / "o")}
    assert (f"sha256 {sha256(tmp_path / 'o')}" in result.stderr) == (options == ["--hash"])


def test_apply_says_what_of_a_folder_is_hashed(tmp_path):
    folder = pipeline(tmp_path / "folder", SD1)
    result = run("apply", folder, "--neurons", "0:1", "-o", tmp_path / "o", "--hash", "--json")
    sha = json.loads(result.stdout)["output"]["sha256"]
    assert f"sha256 {sha}, of what sha256sum prints of its weights\n" in result.stderr


def test_apply_the_papers_results(tmp_path, model):
    results = table(
        tmp_path / "r.csv", [[1, 2], *[[]] * 5, [7]], NONE, [[2], *[[]] * 6], caption="marker fox"
    )
    result = run("apply", model, "--import-csv", results, "-o", tmp_path / "o")
    assert result.exit_code == 0
    assert "does not say for which model" in result.stderr
    assert zeroed(tmp_path / "o") == {DOWN: [1, 2], MID: [7]}
    assert parse(tmp_path / "o")[0]["__metadata__"]["nemo_prune.prompts"] == "3"
    assert (
        run("apply", model, "--import-csv", results, "--top-k", 1, "-o", tmp_path / "p").exit_code == 0
    )
    assert zeroed(tmp_path / "p") == {DOWN: [2]}
    assert b"marker" not in (tmp_path / "o").read_bytes() + (tmp_path / "p").read_bytes()


def test_apply_the_most_shared_of_a_manifest(tmp_path, model):
    prompts = [[(DOWN, 0), (UP, 1)], [(UP, 1), (MID, 2)]]
    path = manifest(tmp_path / "n.json", [(DOWN, 0), (MID, 2), (UP, 1)], sha256(model), prompts)
    result = run("apply", model, "--manifest", path, "--top-k", 2, "-o", tmp_path / "o")
    assert result.exit_code == 0
    assert "warning" not in result.stderr
    assert zeroed(tmp_path / "o") == {DOWN: [0], UP: [1]}
    told = parse(tmp_path / "o")[0]["__metadata__"]
    assert (told["nemo_prune.tau"], told["nemo_prune.top_k"]) == ("0.4", "2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "one of --manifest, --neurons and --import-csv"),
        (["--neurons", "0:1", "--manifest", "n"], "one of --manifest, --neurons and --import-csv"),
        (["--neurons", "0:1", "--import-csv", "r"], "one of --manifest, --neurons and --import-csv"),
        (["--neurons", "0:1", "--top-k", "1"], "--top-k needs prompts"),
        (["--manifest", "n", "--top-k", "0"], "--top-k"),
        (["--manifest", "n"], "n: no such file"),
        (["--import-csv", "r"], "r: no such file"),
        (["--neurons", "0:99"], "has rows 0 to 3, not 99"),
        (["--neurons", "99:0"], "has no value layer '99'"),
        (["--neurons", "0:1", "--undo", "u"], "u: exists already, and undo files are never replaced"),
        (["--neurons", "0:1", "--undo", "o"], "give two names"),
        (["--neurons", "0:1", "--undo", "x/u"], "the folder x does not exist"),
    ],
)
def test_apply_refuses(tmp_path, model, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u").write_text("mine")
    result = run("apply", "m", *options, "-o", "o")
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert (tmp_path / "u").read_text() == "mine"
    assert model.exists()
    nothing_left(tmp_path, "m", "u")


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("undo", ["O", "./o", "here/o", "o/within"])
def test_the_rows_and_the_model_are_two_outputs(tmp_path, model, monkeypatch, kind, undo):
    """Some file systems know no case, so that one output would replace the other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").symlink_to(".")
    source = model if kind == "file" else pipeline(tmp_path / "folder")
    for overwrite in ([], ["--overwrite"]):
        result = run("apply", source, "--neurons", "0:1", "-o", "o", "--undo", undo, *overwrite)
        assert result.exit_code == 2, result.output
        assert "output" in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "O").exists()


def test_half_a_surrogate_pair_in_a_manifest(tmp_path, model):
    path = manifest(tmp_path / "n.json", [(MID, 0)])
    path.write_text(path.read_text().replace('"tau": 0.4', '"tau": "\\ud800"'))
    result = run("apply", model, "--manifest", path, "-o", tmp_path / "o")
    assert result.exit_code == 2
    assert "n.json" in result.stderr
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------------------- undo and restore


def test_undo_and_restore(tmp_path, model):
    out, undo, back = (tmp_path / name for name in ("o", "u", "back"))
    result = run("apply", model, "--neurons", "0:1,6:3", "-o", out, "--undo", undo, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["undo"] == str(undo)
    result = run("restore", out, "--undo", undo, "-o", back, "--json")
    assert result.exit_code == 0
    want = {"output": {"path": str(back), "sha256": sha256(model)}, "rows_restored": 4}
    assert json.loads(result.stdout) == want
    assert back.read_bytes() == model.read_bytes()


def test_restore_refuses(tmp_path, model):
    out, undo = tmp_path / "o", tmp_path / "u"
    run("apply", model, "--neurons", "0:1", "-o", out, "--undo", undo)
    for arguments, words in (
        ([model, "--undo", undo, "-o", tmp_path / "b"], "is not the file that"),
        ([out, "--undo", model, "-o", tmp_path / "b"], "is not a file that --undo wrote"),
        ([out, "--undo", undo, "-o", model], "exists already"),
        ([out, "--undo", undo, "-o", out], "is the model itself"),
        ([out, "--undo", undo, "--overwrite", "-o", undo], "is the undo file itself"),
        ([out, "-o", tmp_path / "b"], "--undo"),
    ):
        result = run("restore", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert "Traceback" not in result.output
    nothing_left(tmp_path, "m", "o", "u")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_restore_is_given_a_manifest(tmp_path, model, kind):
    source = model if kind == "file" else pipeline(tmp_path / "folder")
    path = manifest(tmp_path / "man.json", [(DOWN, 1)])
    result = run("apply", source, "--manifest", path, "-o", tmp_path / "o", "--undo", tmp_path / "u")
    assert f"do not publish {tmp_path / 'u'}: it holds the removed rows\n" in result.stderr
    result = run("restore", tmp_path / "o", "--undo", path, "-o", tmp_path / "b")
    assert result.exit_code == 2
    words = "is a manifest, which names the neurons and holds no rows; give what --undo wrote when the"
    assert f"{path}: {words}" in result.stderr


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module."])
def test_a_wrapped_model_is_zeroed_under_its_own_names(tmp_path, wrapper):
    """The names in the file stay, those in manifests are the plain ones."""
    path = write(tmp_path / "m", [(wrapper + n, d, s) for n, d, s in unet(SD1, "diffusers")])
    chosen = manifest(tmp_path / "n.json", [(DOWN, 1), (MID, 7)], sha256(path))
    options = ["-o", tmp_path / "o", "--undo", tmp_path / "u", "--lora", tmp_path / "l"]
    assert run("apply", path, "--manifest", chosen, *options).exit_code == 0
    assert zeroed(tmp_path / "o") == {DOWN: [1], MID: [7]}
    told = json.loads(run("diff", path, tmp_path / "o", "--expect", chosen, "--json").stdout)
    assert told["expected"]["holds"]
    assert {entry["name"] for entry in told["changed"]} == {f"{wrapper}{n}.weight" for n in (DOWN, MID)}
    run("restore", tmp_path / "o", "--undo", tmp_path / "u", "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert f"lora_unet_{MID.replace('.', '_')}.lora_up.weight" in parse(tmp_path / "l")[0]


# ----------------------------------------------------------------------------------------- diff


def test_diff_says_what_differs(tmp_path, model):
    run("apply", model, "--neurons", "0:1,0:2", "-o", tmp_path / "o")
    assert run("diff", model, model).exit_code == 0
    assert "the same bytes" in run("diff", model, model).stdout
    result = run("diff", model, tmp_path / "o")
    assert result.exit_code == 1
    assert f"'{KEYS[DOWN]}' F16 [4, 5]: rows 1-2, 20 bytes\n" in result.stdout
    assert f"'{TWINS[DOWN]}' F16 [4, 5]: rows 1-2, 20 bytes\n" in result.stdout
    result = run("diff", model, tmp_path / "o", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["a"], told["b"], told["identical"]) == (str(model), str(tmp_path / "o"), False)
    assert {(entry["name"], str(entry["rows"])) for entry in told["changed"]} == {
        (KEYS[DOWN], "[[1, 2]]"), (TWINS[DOWN], "[[1, 2]]")
    }  # fmt: skip
    assert set(told["metadata"]) == {f"nemo_prune.{k}" for k in ("version", "source_sha256", "neurons")}


def test_diff_compares_any_safetensors_files(tmp_path):
    one = write(tmp_path / "a", [("x", "F32", (1,))])
    two = write(tmp_path / "b", [("x", "F32", (1,))], seed=1)
    assert run("diff", one, two).exit_code == 1


def test_diff_proves_a_manifest(tmp_path, model):
    path = manifest(tmp_path / "n.json", [(DOWN, 1), (MID, 7)], sha256(model))
    more = manifest(tmp_path / "n2.json", [(DOWN, 1), (MID, 7), (UP, 0)])
    run("apply", model, "--manifest", path, "-o", tmp_path / "o")
    result = run("diff", model, tmp_path / "o", "--expect", path)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "as expected: 4 rows are zero" in result.stdout
    assert sha256(tmp_path / "o") in result.stdout
    told = json.loads(run("diff", model, tmp_path / "o", "--expect", path, "--json").stdout)
    assert told["expected"] == {
        "holds": True, "rows": 4, "unexpected": [],
        "a_sha256": sha256(model), "b_sha256": sha256(tmp_path / "o"),
    }  # fmt: skip
    result = run("diff", model, tmp_path / "o", "--expect", more)
    assert result.exit_code == 1
    assert f"unexpected: not zero: '{KEYS[UP]}', row 0" in result.stdout
    assert "warning: " in result.stderr
    result = run("diff", model, model, "--expect", path)
    assert result.exit_code == 1


def test_diff_refuses(tmp_path, model):
    other = write(tmp_path / "x", [("x", "F32", (1,))])
    fitting = manifest(tmp_path / "n.json", [(DOWN, 1)])
    strange = manifest(tmp_path / "s.json", [(DOWN, 99)])
    for arguments, words in (
        ([model, tmp_path / "none"], "none: no such file"),
        ([tmp_path / "none", model], "none: no such file"),
        ([model, model, "--expect", tmp_path / "none"], "none: no such file"),
        ([model, model, "--expect", model], "is a safetensors file, such as a model or what --undo"),
        ([model, model, "--expect", strange], "made for another model"),
        ([other, other, "--expect", fitting], f"{other}: "),
    ):
        result = run("diff", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.output


# -------------------------------------------------------------------------------------- inspect


def test_inspect_hashes(tmp_path):
    path = rawfiles.sd1(tmp_path / "m", metadata={"modelspec.hash_sha256": "0x12"})
    assert "hashes" not in json.loads(run("inspect", path, "--json").stdout)
    told = json.loads(run("inspect", path, "--hash", "--json").stdout)["hashes"]
    _, _, data = parse(path)
    assert told == {
        "sha256": sha256(path),
        "a1111": sha256(path)[:10],
        "modelspec": "0x" + hashlib.sha256(data).hexdigest(),
        "modelspec_stated": "0x12",
    }
    run("apply", path, "--neurons", "0:0", "-o", tmp_path / "o")
    told = json.loads(run("inspect", tmp_path / "o", "--hash", "--json").stdout)["hashes"]
    assert told["modelspec"] == told["modelspec_stated"]
    text = run("inspect", path, "--hash").stdout
    assert f"sha256: {sha256(path)}" in text
    assert f"a1111: {sha256(path)[:10]}\n" in text


def test_hashes_of_a_file_that_changed(model):
    from nemo_prune.errors import CheckpointError
    from nemo_prune.files.hashing import file_hashes
    from nemo_prune.files.header import read_header

    header = read_header(model)
    os.truncate(model, header.size - 1)
    with pytest.raises(CheckpointError, match="changed while"):
        file_hashes(header)
    model.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        file_hashes(header)


def test_inspect_says_when_copies_disagree(tmp_path):
    entries = unet(SD1, dtype="F16")
    entries += rawfiles.ema(entries)
    path = write(tmp_path / "m", entries, values={TWINS[MID]: b"\0" * 20 + b"\1" * 60})
    result = run("inspect", path)
    assert f"the copies of {short_name(MID)} disagree" in " ".join(result.stdout.split())
    layers = {v["name"]: v for v in json.loads(run("inspect", path, "--json").stdout)["value_layers"]}
    assert layers[MID]["zeroed"] == []
    assert layers[MID]["zeroed_in_some_copies"] == [0, 1]
    assert layers[DOWN]["zeroed_in_some_copies"] == []
    run("apply", path, "--neurons", "6:0,6:1", "-o", tmp_path / "o")
    assert "disagree" not in run("inspect", tmp_path / "o").stdout
    assert zeroed(tmp_path / "o") == {MID: [0, 1]}


def test_the_table_that_the_help_shows_is_read(tmp_path):
    """At the widths of the real Stable Diffusion 1, one column to stay small."""
    shape = SD1 | {"widths": (320, 640, 1280, 1280), "columns": 1}
    path = write(tmp_path / "wide", [*unet(shape, dtype="F16"), rawfiles.CLIP])
    lines = [line.strip() for line in run("apply", "--help").output.splitlines()]
    first = next(place for place, line in enumerate(lines) if line.startswith("Caption;"))
    (tmp_path / "r.csv").write_text("\n".join(lines[first : first + 2]))
    result = run("apply", path, "--import-csv", tmp_path / "r.csv", "-o", tmp_path / "o", "--json")
    assert result.exit_code == 0, result.output
    assert [len(rows) for rows in zeroed(tmp_path / "o").values()] == [2, 1, 1, 1]


def filled_again(path, key, row):
    """What a program makes of a pruned file that keeps the metadata and loses the edit."""
    header, raw, data = parse(path)
    start, end = header[key]["data_offsets"]
    width = (end - start) // header[key]["shape"][0]
    data = bytearray(data)
    data[start + row * width] = 1
    path.write_bytes(rawfiles.assemble(raw, bytes(data)))


@pytest.mark.parametrize("keys", [KEYS, TWINS])
def test_inspect_compares_what_the_metadata_name_with_what_is_zero(tmp_path, model, keys):
    for strict in ([], ["--strict"]):
        assert run("inspect", model, *strict).exit_code == 0
    out = tmp_path / "o"
    run("apply", model, "--neurons", "0:1,6:3", "-o", out)
    assert json.loads(run("inspect", out, "--json").stdout)["named_but_not_zero"] == []
    assert run("inspect", out, "--strict").exit_code == 0
    filled_again(out, keys[MID], 3)
    assert run("inspect", out).exit_code == 0
    for options in ([], ["--json"]):
        result = run("inspect", out, "--strict", *options)
        assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["named_but_not_zero"] == [{"layer": MID, "row": 3}]
    text = " ".join(run("inspect", out).stdout.split())
    assert f"the metadata name row 3 of {short_name(MID)} as removed, and it is not zero" in text
    assert "row 1" not in text


@pytest.mark.parametrize(
    ("note", "found"),
    [
        ({"mid_block.attentions.7": [0], MID: [800]}, [("mid_block.attentions.7", 0), (MID, 800)]),
        ("nonsense", None),
    ],
)
def test_inspect_of_notes_that_mean_nothing(tmp_path, note, found):
    path = rawfiles.sd1(tmp_path / "m", metadata={"nemo_prune.neurons": json.dumps(note)})
    result = run("inspect", path, "--json", "--strict")
    assert result.exit_code == 1
    wanted = found and [{"layer": layer, "row": row} for layer, row in sorted(found)]
    assert json.loads(result.stdout)["named_but_not_zero"] == wanted
    assert ("damaged metadata" in run("inspect", path).stdout) == (found is None)


def test_inspect_of_a_folder_looks_into_every_copy(tmp_path):
    root = pipeline(tmp_path / "m")
    other = add_copy(root / "unet_ema" / WEIGHTS, seed=1)
    shard(root / "unet" / WEIGHTS, 3)
    out = tmp_path / "o"
    run("apply", root, "--neurons", "0:1,6:3", "-o", out)
    assert run("inspect", out, "--strict").exit_code == 0
    filled_again(out / other.relative_to(root), f"{MID}.weight", 3)
    result = run("inspect", out, "--strict", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["named_but_not_zero"] == [{"layer": MID, "row": 3}]


def test_inspect_numbers_layers_as_apply_counts_them(model):
    lines = run("inspect", model).stdout.splitlines()
    (line,) = [line for line in lines if "mid_block.attentions.0" in line]
    assert "6" in line.split("mid_block")[0]


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("shape", [SD1, SDXL])
def test_inspect_fits_80_columns(tmp_path, monkeypatch, shape, pruned):
    """Also of SDXL at its true widths, with many rows zero and metadata of many pages."""
    monkeypatch.setenv("COLUMNS", "80")
    true = shape | {"widths": (320, 640, 1280, 1280)[: len(shape["widths"])], "columns": 1}
    path = write(tmp_path / "m", unet(true, dtype="F8_E4M3", sdxl=shape is SDXL))
    middle = len(open_checkpoint(path).select("down"))
    if pruned:
        rows = ",".join(f"{middle}:{row}" for row in range(1000, 1200, 3))
        run("apply", path, "--neurons", rows, "-o", tmp_path / "o")
        path = tmp_path / "o"
    shown = run("inspect", path).stdout.replace(str(tmp_path), "").splitlines()
    assert all(len(line) <= 80 for line in shown if "_sha256: " not in line)
    table = [line for line in shown if line.startswith("│")]
    assert len([line for line in table if line[2:4].strip()]) == len(open_checkpoint(path).value_layers)
    assert ("mid_block.attentions.0.0" in table[0]) == pruned
    text = "\n".join(shown)
    assert ("nemo_prune.neurons: 67 rows in 1 layers (--json shows them)" in text) == pruned
    assert f"down_blocks.{1 if shape is SDXL else 0}.attentions.0.0" in text


def test_the_short_names_of_layers_choose_them(tmp_path, model):
    run("apply", model, "--neurons", "mid_block.attentions.0.0:3", "-o", tmp_path / "o")
    assert zeroed(tmp_path / "o") == {MID: [3]}


# ------------------------------------------------------------------------------- without torch


@pytest.mark.parametrize("verb", ["apply", "diff", "restore", "inspect"])
def test_every_verb_has_help_with_an_example(verb):
    result = run(verb, "-h")
    assert result.exit_code == 0
    assert f"nemo-prune {verb} " in result.output


@pytest.mark.parametrize(("options", "spared"), [((), ["jinja2"]), (("--json",), ["jinja2", "rich"])])
def test_inspect_imports_no_more_than_it_prints_with(model, options, spared):
    code = (
        "import sys\nfrom nemo_prune.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
        f"assert not {set(spared)} & sys.modules.keys(), sys.modules.keys()\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, "inspect", str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_these_verbs_never_import_torch(tmp_path, model):
    code = (
        "import sys\nfrom nemo_prune.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
        "assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys(), sys.modules.keys()\n"
        "sys.exit(code)\n"
    )
    results = table(tmp_path / "r.csv", [[1], *[[]] * 6])
    path = manifest(tmp_path / "n.json", [(DOWN, 1)])
    out, undo = tmp_path / "o", tmp_path / "u"
    folder, clean, rows = pipeline(tmp_path / "folder"), tmp_path / "clean", tmp_path / "rows"
    for arguments in (
        ["apply", model, "--import-csv", results, "-o", out, "--undo", undo],
        ["diff", model, out, "--expect", path],
        ["restore", out, "--undo", undo, "-o", tmp_path / "back"],
        ["inspect", out, "--hash"],
        ["apply", folder, "--manifest", path, "-o", clean, "--undo", rows],
        ["diff", folder, clean, "--expect", path],
        ["restore", clean, "--undo", rows, "-o", tmp_path / "folder-back"],
    ):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
