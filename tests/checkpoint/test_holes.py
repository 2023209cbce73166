"""Files with holes, as unfinished downloads have them, are refused; pruned ones are not."""

from pathlib import Path

import folders
import ldm
import pytest
import rawfiles
from tiny import run, tiny_tensors, told_heads

from nemo_prune.checkpoint.holes import hole_in
from nemo_prune.checkpoint.open import open_checkpoint

MODEL = ["apply", "m.safetensors", "--neurons", "0:1", "-o", "o.safetensors"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return rawfiles.sd1(Path("m.safetensors"))


def punched(path: Path, first: float, last: float) -> None:
    """Zeros from one part of the data to another, in a file of the same size."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    size = len(content) - start
    begin, end = start + int(first * size), start + int(last * size)
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


@pytest.mark.parametrize(("first", "last"), [(0.6, 1), (0.9, 1), (0.3, 0.5), (0, 0.2), (0, 1)])
def test_holes_are_refused(model: Path, first: float, last: float) -> None:
    punched(model, first, last)
    for command in (MODEL, [*MODEL[:-2], "--lora", "l.safetensors"]):
        result = run(*command)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("nemo-prune: m.safetensors: '")
        assert "and all between them are zeros, as where a download was not finished; " in result.stderr
    assert sorted(Path().iterdir()) == [model]
    assert "incomplete: m.safetensors: " in " ".join(run("inspect", model).stdout.split())
    Path("m.safetensors.crdownload").touch()
    assert "(m.safetensors.crdownload lies beside it); download" in run(*MODEL).stderr


@pytest.mark.parametrize("suffix", ["aria2", "st"])
def test_what_says_that_a_download_goes_on(model: Path, suffix: str) -> None:
    """A hole in the midst of one tensor shows nowhere else."""
    control = Path(f"{model}.{suffix}")
    control.write_bytes(b"\0")
    result = run(*MODEL)
    assert result.exit_code == 2
    assert f"is not downloaded to its end, as {control} lies beside it" in result.stderr
    control.unlink()
    assert run(*MODEL).exit_code == 0


def test_a_pruned_model_and_a_single_tensor_of_zeros_are_no_hole(model: Path) -> None:
    found = open_checkpoint(model)
    every = ",".join(f"{n}:{row}" for n, v in enumerate(found.value_layers) for row in range(v.rows))
    assert run("apply", model, "--neurons", every, "-o", "o.safetensors").exit_code == 0
    assert hole_in(open_checkpoint(Path("o.safetensors"))) is None
    assert run("apply", "o.safetensors", "--neurons", "0:1", "-o", "p.safetensors").exit_code == 0
    entries = rawfiles.unet(rawfiles.SD1)
    name, dtype, shape = next(e for e in entries if "to_k" in e[0])
    zeros = {name: bytes(rawfiles.nbytes(dtype, shape))}
    rawfiles.write(Path("k.safetensors"), entries, values=zeros)
    assert hole_in(open_checkpoint(Path("k.safetensors"))) is None


def test_a_folders_files(tmp_path: Path) -> None:
    root = folders.pipeline(tmp_path / "model")
    weights = root / "unet" / folders.WEIGHTS
    punched(weights, 0.8, 1)
    result = run("apply", root, "--neurons", "0:1", "-o", tmp_path / "o")
    assert result.exit_code == 2
    assert f"{weights}: 'up_blocks" in result.stderr or f"{weights}: 'mid_block" in result.stderr
    again = folders.pipeline(tmp_path / "again")
    (again / "text_encoder" / "model.safetensors.aria2").touch()
    assert "model.safetensors.aria2 lies beside it" in str(hole_in(open_checkpoint(again)))


def test_no_prompt_is_scored_with_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ldm.save_tensors(Path("m.safetensors"), tiny_tensors("sd1"), told_heads())
    punched(Path("m.safetensors"), 0.9, 1)
    Path("p.txt").write_text("a cat\n")
    for verb in ("check", "detect", "localize", "calibrate"):
        outputs = {"localize": ["-o", "o.json"], "calibrate": ["-o", "o.safetensors"]}
        result = run(verb, "m.safetensors", *([] if verb == "calibrate" else ["--prompts", "p.txt"]),
                     "--device", "cpu", *outputs.get(verb, ()))  # fmt: skip
        assert result.exit_code == 2, result.output
        assert "as where a download was not finished" in result.stderr
