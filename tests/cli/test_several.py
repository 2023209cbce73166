"""Several models in one run: one after the other, one exit code, and none in another's way."""

import json
from pathlib import Path

import pytest
import rawfiles
from folders import pipeline
from rawfiles import SD1
from test_cli_files import manifest, zeroed
from test_surgery import DOWN
from tiny import run

from nemo_prune.errors import CheckpointError


def listed(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files in two precisions and a folder of one architecture, and a manifest for them."""
    monkeypatch.chdir(tmp_path)
    rawfiles.sd1(Path("a.safetensors"))
    rawfiles.sd1(Path("b.safetensors"), dtype="F32")
    pipeline(Path("c"), SD1)
    Path("a.yaml").write_text("of a")
    manifest(Path("n.json"), [(DOWN, 1)])
    return tmp_path


MODELS = ["a.safetensors", "b.safetensors", "c"]


# ---------------------------------------------------------------------------------------- apply


@pytest.mark.usefixtures("here")
def test_apply_writes_each_under_its_name() -> None:
    given = ["--manifest", "n.json", "-o", "out", "--undo", "rows", "--lora", "loras", "--json"]
    result = run("apply", *MODELS, *given)
    assert result.exit_code == 0, result.output
    assert listed("out") == listed("rows") == MODELS
    assert listed("loras") == ["a.safetensors", "b.safetensors", "c.safetensors"]
    told = json.loads(result.stdout)
    assert told["exit_code"] == 0
    assert [one["source"]["path"] for one in told["models"]] == MODELS
    for name, one in zip(MODELS, told["models"], strict=True):
        assert zeroed(Path("out") / name) == {DOWN: [1]}
        assert one["output"]["path"] == str(Path("out") / name)
        back = run("restore", one["output"]["path"], "--undo", one["undo"], "-o", f"back-{name}")
        assert back.exit_code == 0
    assert Path("back-b.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert result.stderr.count("wrote out") == 3
    assert result.stderr.count("warning:") == 3, "the manifest is of none of them"


@pytest.mark.usefixtures("here")
def test_a_folder_that_exists_is_filled_and_nothing_in_it_replaced() -> None:
    Path("out").mkdir()
    Path("out/kept").touch()
    command = ["apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out"]
    assert run(*command, "--sidecars", "--hash").exit_code == 0
    assert run("apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out").exit_code == 2
    assert run(*command, "--overwrite").exit_code == 0
    assert {"kept", "a.safetensors", "b.safetensors", "a.yaml"} == set(listed("out"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a.safetensors", "none.safetensors", "-o", "out"], "none.safetensors: no such file"),
        (["a.safetensors", "./a.safetensors", "-o", "out"], "a.safetensors: is given twice"),
        (["a.safetensors", "link.safetensors", "-o", "out"], "link.safetensors: is given twice"),
        (["a.safetensors", "d/A.safetensors", "-o", "out"], "have one name"),
        (["a.safetensors", "b.safetensors", "-o", "n.json"], "n.json: is read by this command"),
        (["a.safetensors", "b.safetensors", "-o", "text"], "text: is a file; give a folder"),
        (["a.safetensors", "b.safetensors", "-o", "no/out"], "the folder no does not exist"),
        (["a.safetensors", "b.safetensors", "-o", "."], "is the model itself"),
        (["a.safetensors", "b.safetensors", "-o", "full"], "b.safetensors: exists already"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--undo", "o"], "give two names"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--undo", "o/rows"], "give two places"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--lora", "o"], "give two names"),
        (["a.safetensors", "c", "-o", "c/unet"], "lies in"),
        (["a.safetensors", "c", "-o", "o", "--link"], "--link: goes with a diffusers folder"),
        (["a.safetensors", "xl.safetensors", "-o", "o"], "another model than"),
    ],
)
def test_what_is_refused_is_refused_before_the_first_is_written(
    here: Path, given: list[str], words: str
) -> None:
    Path("link.safetensors").symlink_to("a.safetensors")
    Path("d").mkdir()
    Path("full").mkdir()
    rawfiles.sd1(Path("d/A.safetensors"))
    rawfiles.write(Path("xl.safetensors"), rawfiles.unet(rawfiles.SDXL))
    Path("full/b.safetensors").write_text("mine")
    Path("text").touch()
    before = sorted(here.rglob("*"))
    result = run("apply", *given, "--manifest", "n.json")
    assert result.exit_code == 2
    assert words in result.stderr
    assert sorted(here.rglob("*")) == before


@pytest.mark.usefixtures("here")
def test_every_refusal_has_its_line() -> None:
    result = run("apply", "no1", "a.safetensors", "no2", "--neurons", "0:1", "-o", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("nemo-prune: no1: no such file")
    assert "\nnemo-prune: no2: no such file" in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_room_is_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = Path("b.safetensors").stat().st_size + 100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    for model in ("a.safetensors", "b.safetensors"):
        assert run("apply", model, "--neurons", "0:1", "-o", f"o-{model}").exit_code == 0
    result = run("apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out")
    assert result.exit_code == 2
    assert "but the disk has" in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_one_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_prune.checkpoint import apply

    whole = apply._write_part

    def failing(part, *given):
        if part.path.name == "a.safetensors":
            raise CheckpointError("a.safetensors: changed while it was read; try again")
        if part.path.name == "b.safetensors":
            raise RuntimeError("surprise")
        return whole(part, *given)

    monkeypatch.setattr(apply, "_write_part", failing)
    result = run("apply", *MODELS, "--neurons", "0:1", "-o", "out", "--json")
    assert result.exit_code == 2
    assert listed("out") == ["c"]
    told = json.loads(result.stdout)
    assert told["exit_code"] == 2
    assert "changed while it was read" in told["models"][0]["error"]
    assert "internal error: RuntimeError: surprise" in told["models"][1]["error"]
    assert told["models"][2]["neurons"] == 1
    assert "nemo-prune: a.safetensors: changed" in result.stderr
