"""The verbs as a user runs them, on tiny random checkpoints."""

import csv
import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import run, write_small

from nemo_prune.checkpoint.recognize import recognize

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
# One layer of few neurons: a random model memorizes nothing, so the search climbs to its end.
QUICK = ["--seeds", "2", "--device", "cpu", "--layers", "down_blocks.0.attentions.0*"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "tiny.safetensors", side=16)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("marker caption of a red fox\nanother one\n")
    return path


def _tensors(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read by hand: shares no code with the package."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = raw[8 + length :]
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: body[start:end] for name, (start, end) in spans.items()}, metadata


def test_prune_writes_checks_and_tells(model: Path, prompts: Path, tmp_path: Path) -> None:
    out, manifest, undo = (tmp_path / name for name in ("clean.safetensors", "m.json", "u"))
    before = model.read_bytes()
    result = run(model, "--prompts", prompts, "-o", out, "--manifest", manifest, "--json",
                  "--undo", undo, "--tau", "0", "--gate", "0", "--neurons-csv", tmp_path / "n.csv",
                  "--plots", tmp_path / "plots", *QUICK)  # fmt: skip
    assert result.exit_code in (0, 1), result.output
    told = json.loads(result.stdout)
    assert set(told) >= {"version", "source", "output", "tau", "prompts", "neurons", "cost"}
    assert told["output"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert told["source"]["sha256"] == hashlib.sha256(before).hexdigest()
    assert told["cost"]["peak_memory_mb"] > 50  # torch alone takes more
    assert told["neurons"], "a threshold of 0 makes every prompt memorized"
    still = any(entry["status"] in ("still memorized", "not removable") for entry in told["prompts"])
    assert result.exit_code == (1 if still else 0)
    assert f"do not publish {undo}: it holds the removed rows\n" in result.stderr
    assert model.read_bytes() == before
    kept = json.loads(manifest.read_text())
    assert kept["neurons"] == told["neurons"]
    rows = list(csv.DictReader((tmp_path / "n.csv").read_text().splitlines()))
    assert [(int(row["prompt"]), row["layer"], int(row["row"])) for row in rows] == [
        (entry["index"], neuron["layer"], neuron["row"])
        for entry in kept["prompts"]
        for neuron in entry["neurons"]
    ]
    assert all(float(row["harm"]) > 0 for row in rows)
    assert f"wrote {tmp_path / 'n.csv'}" in result.stderr
    assert f"wrote {tmp_path / 'plots'}: scores.svg, scores.png, neurons.svg" in result.stderr
    assert f"{len(told['neurons'])} of " in (tmp_path / "plots" / "neurons.svg").read_text()

    old, _ = _tensors(model)
    new, metadata = _tensors(out)
    assert list(old) == list(new)
    changed = {name for name in old if old[name] != new[name]}
    layers = {neuron["layer"] for neuron in told["neurons"]}
    assert len(changed) <= len(layers)
    assert all("attn2.to_v.weight" in name for name in changed)
    assert metadata["nemo_prune.source_sha256"] == told["source"]["sha256"]
    for text in (out.read_bytes(), manifest.read_bytes(), result.output.encode()):
        assert b"marker caption" not in text

    back = tmp_path / "back.safetensors"
    assert run("restore", out, "--undo", undo, "-o", back).exit_code == 0
    assert back.read_bytes() == before
    assert run("diff", model, out, "--expect", manifest).exit_code == 0


def test_not_memorized_is_left_alone(model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.safetensors"
    result = run(model, "--prompts", prompts, "-o", out, "--json", "--tau", "1", "--gate", "1", *QUICK)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [entry["status"] for entry in told["prompts"]] == ["not memorized"] * 2
    assert told["neurons"] == []
    old, _ = _tensors(model)
    assert _tensors(out)[0] == old


def test_localize_then_apply_equals_prune(model: Path, prompts: Path, tmp_path: Path) -> None:
    manifest, one, two = (tmp_path / name for name in ("m.json", "1.safetensors", "2.safetensors"))
    options = ["--prompts", prompts, "--tau", "0", "--gate", "0", *QUICK]
    assert run("localize", model, *options, "-o", manifest).exit_code in (0, 1)
    assert json.loads(manifest.read_text())["source"]["model"] == recognize(model).kind
    assert run("prune", model, *options, "-o", one).exit_code in (0, 1)
    assert run("apply", model, "--manifest", manifest, "-o", two).exit_code == 0
    assert one.read_bytes() == two.read_bytes()


def test_the_literal_search_and_both_criteria_run(model: Path, prompts: Path) -> None:
    for search in ("literal", "gradient-free", "auto"):
        for criterion in ("same-seed", "cross-seed"):
            result = run(model, "--prompts", prompts, "--dry-run", "--json", "--tau", "0.9",
                          "--gate", "0.9",
                          "--search", search, "--criterion", criterion, *QUICK)  # fmt: skip
            assert result.exit_code in (0, 1), result.output
            assert json.loads(result.stdout)["output"] is None


def test_apply_warns_about_another_source(model: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({
        "format": "nemo-prune-manifest/1", "version": "0", "options": {}, "prompts": [],
        "source": {"path": "other.safetensors", "sha256": "0" * 64},
        "neurons": [{"layer": LAYER, "row": 1}],
    }))  # fmt: skip
    result = run("apply", model, "--manifest", manifest, "-o", tmp_path / "o.safetensors")
    assert result.exit_code == 0
    assert "warning" in result.stderr
    found = json.loads(run("inspect", tmp_path / "o.safetensors", "--json").stdout)
    assert found["value_layers"][0]["zeroed"] == [1]
    assert found["provenance"]["nemo_prune.neurons"] == json.dumps({LAYER: [1]}).replace(" ", "")


def test_inspect_speaks_to_people_too(model: Path) -> None:
    result = run("inspect", model)
    assert result.exit_code == 0
    assert "family: sd1" in result.stdout
    assert "mid_block.attentions.0" in result.stdout


def test_long_prompts_are_said_to_be_truncated(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "p.csv"
    prompts.write_text("Caption\n" + "very " * 100 + "long\nshort\nshort\n")
    result = run(model, "--prompts", prompts, "--dry-run", "--json", "--tau", "1", "--gate", "1", *QUICK)
    assert [e["truncated"] for e in json.loads(result.stdout)["prompts"]] == [True, False]
    assert "prompt 0: 103 tokens, truncated to 77" in result.stderr
    assert "1 repeated prompts merged" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "none.safetensors"}, "no such file"),
        ({"model": "."}, "folder"),
        ({"model": "empty.safetensors"}, "empty"),
        ({"model": "lfs.safetensors"}, "git lfs pull"),
        ({"model": "old.ckpt"}, "safetensors"),
        ({"model": "cut.safetensors"}, "cut"),
        ({"--prompts": "none.txt"}, "no such file"),
        ({"--prompts": "empty.safetensors"}, "holds no prompts"),
        ({"-o": "MODEL"}, "is the model itself"),
        ({"-o": "taken.safetensors"}, "exists already"),
        ({"-o": "nowhere/out.safetensors"}, "does not exist"),
        ({"--undo": "taken.safetensors"}, "undo files are never replaced"),
        ({"--device": "cuda"}, "not available"),
        ({"--layers": "nothing*"}, "no value layer matches"),
        ({"--timestep": "5000"}, "the model knows 0 to 999"),
        ({"--batch-size": "zero"}, "positive number or auto"),
        ({"--calibration-prompts": "prompts.txt"}, "at least 30"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    model: Path, prompts: Path, tmp_path: Path, change: dict[str, str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    whole = model.read_bytes()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "taken.safetensors").write_text("keep me")
    options = {"model": str(model), "--prompts": str(prompts), "-o": "out.safetensors"} | change
    if options["-o"] == "MODEL":
        options["-o"] = str(model)
    there = sorted(tmp_path.iterdir())
    source = options.pop("model")
    pairs = [part for pair in options.items() for part in pair]
    defaults = [] if "--device" in options else ["--device", "cpu"]
    if "--layers" not in options:
        defaults += QUICK[-2:]
    result = run(source, *pairs, *defaults, "--seeds", "2")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("nemo-prune:")]) <= 1
    assert sorted(tmp_path.iterdir()) == there
    assert model.read_bytes() == whole
    assert (tmp_path / "taken.safetensors").read_text() == "keep me"


def test_demo_without_its_checkpoint_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.report.demo.CHECKPOINT", tmp_path / "none.safetensors")
    result = run("demo", "--folder", tmp_path / "new")
    assert result.exit_code == 2
    assert "the demo checkpoint is missing" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("shapes\ndo not\tmatch"), "internal error: RuntimeError: shapes do not match; pl"),
        (KeyError(), "internal error: KeyError; please report it"),
        (PermissionError(13, "Permission denied", "x"), "PermissionError: [Errno 13] Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "smaller --batch-size, or --device cpu"),
    ],
)
def test_an_error_of_the_program_is_no_verdict(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    """An exception that nobody caught would exit with 1: to `check`, something is memorized."""

    def broken(_path: Path) -> None:
        raise error

    monkeypatch.setattr("nemo_prune.checkpoint.open.open_checkpoint", broken)
    result = run("check", "m.safetensors", "--prompts", prompts)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("nemo-prune: ")
    assert line in result.stderr
    monkeypatch.setenv("NEMO_PRUNE_DEBUG", "1")
    told = run("check", "m.safetensors", "--prompts", prompts).stderr
    assert told.startswith("Traceback (most recent call last)")
    assert told.endswith(result.stderr)


def test_bad_usage_keeps_its_own_words(model: Path) -> None:
    result = run("check", model)
    assert result.exit_code == 2
    assert "Missing option '--prompts'" in result.stderr
    assert "internal error" not in result.stderr


@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--json"], ["--help"]])
def test_a_reader_that_left_is_no_verdict(model: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "-c",
        "from nemo_prune.cli.main import main; main()",
        *words,
        str(model),
    ]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=dict(os.environ))
    os.close(writing)
    said = b"nemo-prune: standard output was closed before all was written\n"
    # Of help nothing is a verdict, so nothing is said.
    said = b"" if "--help" in words else said
    assert (done.returncode, done.stderr.replace(b"\r\n", b"\n")) == (2, said)


@pytest.mark.parametrize("verb", ["", "prune", "localize", "verify", "demo"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = run(*([verb] if verb else []), "-h")
    assert result.exit_code == 0
    assert f"nemo-prune {verb}".strip() in result.output.replace("model.safe", "prune model.safe")


def test_bytes_verbs_never_import_torch(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom nemo_prune.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({
        "format": "nemo-prune-manifest/1", "version": "0", "options": {}, "prompts": [],
        "source": {"path": "x", "sha256": "0" * 64}, "neurons": [{"layer": LAYER, "row": 0}],
    }))  # fmt: skip
    out = tmp_path / "o.safetensors"
    for arguments in (
        ["--help"], ["inspect", model], ["apply", model, "--manifest", manifest, "-o", out],
    ):  # fmt: skip
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
    assert out.exists()


@pytest.mark.parametrize(
    ("word", "verb"),
    [("chekc", "check"), ("prun", "prune"), ("Verify", "verify"), ("inspet", "inspect")],
)
def test_a_mistyped_verb_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(word, "model.safetensors", "--prompts", "x")
    assert result.exit_code == 2
    assert f"No such command or file '{word}'. Did you mean '{verb}'?" in result.stderr


def test_a_model_may_be_named_almost_like_a_verb(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checks").symlink_to(model)
    result = run("checks", "--prompts", "none.txt", "--dry-run")
    assert result.exit_code == 2
    assert "none.txt: no such file" in result.stderr


@pytest.mark.parametrize(
    ("word", "meant"), [("help", "--help"), ("--verison", "--version"), ("--hlep", "--help")]
)
def test_a_mistyped_option_of_the_whole_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(word)
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("-overwrite", "--overwrite"), ("-output=x", "--output"), ("\u2013\u2013neurons", "--neurons"),
        ("\u2014neurons", "--neurons"), ("-\u2013lora", "--lora"),
    ],
)  # fmt: skip
def test_an_option_with_too_few_or_other_dashes_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, meant: str
) -> None:
    # -overwrite would be -o of a file "verwrite".
    monkeypatch.chdir(tmp_path)
    result = run("apply", model, "--neurons", "0:1", word)
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "option"), [("prune", "--max-drift"), ("verify", "--guidance"), ("check", "--gate")]
)
def test_nan_is_in_no_range(verb: str, option: str) -> None:
    result = run(verb, "a", *(["b"] if verb == "verify" else []), "--prompts", "p", option, "nan")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': nan is no number" in result.stderr
