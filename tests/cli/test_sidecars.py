"""What lies beside a model under its name goes along, and never over anything."""

import json
from pathlib import Path
from typing import Any

import pytest
import rawfiles
from folders import pipeline
from rawfiles import SD1
from test_surgery import DOWN
from tiny import run, write_small

import nemo_prune
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import OptionError, OutputError
from nemo_prune.files.sidecars import find_sidecars
from nemo_prune.localize import prune as pruning

# What users of A1111, Forge, ComfyUI and of helpers for Civitai have beside `model.safetensors`.
GO_ALONG = [
    "model.yaml", "model.yml", "model.json", "model.civitai.info", "model.metadata.json",
    "model.cm-info.json", "model.preview.png", "model.preview.1.jpeg", "model.png", "model.WEBP",
    "model.mp4", "model.txt", "model.description.txt", "model.safetensors.rgthree-info.json",
    "model.thumb.jpg", "model.rgthree.jpg", "model.jxl",
]  # fmt: skip
STAY = [
    "model.vae.pt", "model.vae.safetensors", "model.sha256", "model.safetensors.sha256", "model.ckpt",
    "model.fp16.yaml", "model2.yaml", "._model.yaml", "other.yaml", "model", "yaml",
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rawfiles.sd1(Path("model.safetensors"))
    for name in (*GO_ALONG, *STAY):
        Path(name).write_text(f"of {name}")
    Path("model.webm").mkdir()
    Path("out").mkdir()
    return Path("model.safetensors")


def copies(folder: str = "out") -> dict[str, str]:
    return {
        path.name: path.read_text() for path in Path(folder).iterdir() if path.suffix != ".safetensors"
    }


def test_apply_copies_them_under_the_new_name(model: Path) -> None:
    given = ["--neurons", "0:1", "-o", "out/clean.safetensors", "--sidecars", "--json"]
    result = run("apply", model, *given)
    assert result.exit_code == 0, result.output
    wanted = {f"clean{name.removeprefix('model')}": f"of {name}" for name in GO_ALONG}
    assert copies() == wanted
    told = json.loads(result.stdout)
    assert {Path(path).name for path in told["sidecars"]} == set(wanted)
    assert "wrote out/clean.preview.png\n" in result.stderr.replace("\\", "/")


def test_without_the_option_nothing_goes_along(model: Path) -> None:
    result = run("apply", model, "--neurons", "0:1", "-o", "out/clean.safetensors", "--json")
    assert result.exit_code == 0
    assert copies() == {}
    assert "sidecars" not in json.loads(result.stdout)


def test_python_copies_them_too(model: Path) -> None:
    nemo_prune.apply(model, [Neuron(DOWN, 1)], "out/clean.safetensors", sidecars=True)
    assert len(copies()) == len(GO_ALONG)


@pytest.mark.usefixtures("model")
def test_sidecars_in_another_unicode_form() -> None:
    """As macOS writes names."""
    model = rawfiles.sd1(Path("caf\u00e9.safetensors"))
    Path("cafe\u0301.yaml").write_text("model: {params: {parameterization: v}}")
    assert open_checkpoint(model).prediction_type == "v_prediction"
    assert [*find_sidecars(model, Path("out/o.safetensors")).values()] == [Path("out/o.yaml")]


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_another_file_is_never_replaced(model: Path, more: list[str]) -> None:
    Path("out/clean.yaml").write_text("mine")
    result = run("apply", model, "--neurons", "0:1", "-o", "out/clean.safetensors", "--sidecars", *more)
    assert result.exit_code == 2
    assert "clean.yaml: is another file than model.yaml, and sidecars are never" in result.stderr
    assert "leave out --sidecars" in result.stderr
    assert [path.name for path in Path("out").iterdir()] == ["clean.yaml"], "nothing was written"
    assert Path("out/clean.yaml").read_text() == "mine"


def test_a_second_run_finds_its_own(model: Path) -> None:
    command = ["apply", model, "--neurons", "0:1", "-o", "out/clean.safetensors", "--sidecars"]
    assert run(*command).exit_code == 0
    assert run(*command, "--overwrite").exit_code == 0
    assert len(copies()) == len(GO_ALONG)


def test_what_the_command_reads_or_writes_is_no_sidecar(model: Path) -> None:
    """A manifest or a list of memorized prompts that is called like the model is not published."""
    assert run("apply", model, "--neurons", "0:1", "-o", "out/a.safetensors").exit_code == 0
    manifest = {
        "format": "nemo-prune-manifest/1", "version": "0", "options": {}, "prompts": [],
        "source": {"path": "model.safetensors", "sha256": "0" * 64},
        "neurons": [{"layer": DOWN, "row": 1}],
    }  # fmt: skip
    Path("model.json").write_text(json.dumps(manifest))
    result = run("apply", model, "--manifest", "model.json", "-o", "out/clean.safetensors", "--sidecars")
    assert result.exit_code == 0, result.output
    assert "clean.json" not in copies()
    assert "clean.yaml" in copies()


def test_prune_leaves_its_prompts_out_and_refuses_early(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.model.loading.load_model", None)
    given = ["prune", model, "--prompts", "model.txt", "-o", "out/clean.safetensors", "--sidecars"]
    Path("out/clean.txt").write_text("mine")
    result = run(*given, "--dry-run", "--expect-prompts", "9")
    assert "--expect-prompts 9, and 1 distinct" in result.stderr, "clean.txt is not in the way"
    Path("out/clean.yaml").write_text("mine")
    result = run(*given)
    assert result.exit_code == 2
    assert "clean.yaml: is another file than model.yaml" in result.stderr


def test_prune_copies_them_before_it_loads_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program, this one too, may read the configuration beside the pruned file."""
    monkeypatch.chdir(tmp_path)
    write_small(Path("m.safetensors"), side=16)
    for name in ("m.preview.png", "m.txt"):
        Path(name).write_text("a cat")
    whole = pruning.check

    def looking(*given: Any) -> Any:
        assert Path("o.preview.png").exists()
        return whole(*given)

    monkeypatch.setattr(pruning, "check", looking)
    result = run("prune", "m.safetensors", "--prompts", "m.txt", "-o", "o.safetensors", "--sidecars",
                 "--tau", "1", "--gate", "1", "--seeds", "2", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "wrote o.preview.png\n" in result.stderr
    assert not Path("o.txt").exists(), "a list of prompts is not published"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--undo", "out/clean.yaml"], "clean.yaml: is to be written twice"),
        (["--lora", "out/clean.json"], "clean.json: is to be written twice"),
    ],
)
def test_no_output_shares_a_file_with_a_sidecar(model: Path, given: list[str], words: str) -> None:
    result = run("apply", model, "--neurons", "0:1", "-o", "out/clean.safetensors", "--sidecars", *given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(Path("out").iterdir()) == []


def test_none_are_said_to_be_there(tmp_path: Path) -> None:
    alone = rawfiles.sd1(tmp_path / "m.safetensors")
    result = run("apply", alone, "--neurons", "0:1", "-o", tmp_path / "o.safetensors", "--sidecars")
    assert result.exit_code == 0
    assert f"note: no sidecars lie beside {alone}" in result.stderr


def test_where_there_is_nothing_to_go_along_with(tmp_path: Path, model: Path) -> None:
    result = run("apply", model, "--neurons", "0:1", "--lora", "out/l.safetensors", "--sidecars")
    assert result.exit_code == 2
    assert "--sidecars goes with -o" in result.stderr
    folder = pipeline(tmp_path / "folder", SD1)
    result = run("apply", folder, "--neurons", "0:1", "-o", "out/f", "--sidecars")
    assert result.exit_code == 2
    assert "--sidecars: goes with a single file, and" in result.stderr
    with pytest.raises(OptionError, match="sidecars: goes with a single file"):
        nemo_prune.apply(folder, [(0, 1)], "out/f", sidecars=True)


def test_a_full_disk_says_that_the_model_is_written(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("out/clean.yaml: cannot be written (no space left on the disk)")

    monkeypatch.setattr("nemo_prune.files.sidecars.new_file", full)
    result = run("apply", model, "--neurons", "0:1", "-o", "out/clean.safetensors", "--sidecars")
    assert result.exit_code == 2
    assert "no space left on the disk); out/clean.safetensors itself is written" in result.stderr
    assert Path("out/clean.safetensors").exists()
