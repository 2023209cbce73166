"""Refusals that belong to no verb's or module's own tests, each by its whole sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rawfiles
from rawfiles import SD1, unet, write
from test_calibration_file import calibration
from test_surgery import DOWN
from tiny import Told, run

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron, short_name
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import NemoPruneError
from nemo_prune.files.header import read_header
from nemo_prune.model.configs import METADATA_KEY, Configs, config_file, metadata_overrides, read_config
from nemo_prune.options import Options
from nemo_prune.report.demo import demo_lines, demo_part, run_demo
from nemo_prune.scoring.calibration_file import Calibration, write_calibration
from nemo_prune.scoring.journal import Journal
from nemo_prune.scoring.ordinary import Ordinary


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(NemoPruneError) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "m"], "give -o OUT, the checkpoint to write, or --dry-run"),
        (["prune", "m", "--dry-run", "--resume"],
         "--resume: the journal lies beside the manifest; give --manifest"),
        (["detect", "m", "--resume"], "--resume: the journal lies beside the table; give --csv or -o"),
    ],
)  # fmt: skip
def test_options_that_lack_another(
    tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m", unet(SD1))
    (tmp_path / "p.txt").write_text("a cat\n")
    result = run(*arguments, "--prompts", "p.txt")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{words}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "p.txt"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": 1}, "seeds: the score compares seeds, so it needs at least 2"),
        ({"fpr": 0.0}, "fpr 0.0: is a rate between 0 and 1, such as 0.01"),
        ({"fpr": 1.0}, "fpr 1.0: is a rate between 0 and 1, such as 0.01"),
        ({"fpr": 1e-17},
         "fpr 1e-17: no list of prompts shows so small a rate; give at least 1e-09, or gate"),
        ({"tau": 0.5, "gate": 0.4},
         "gate 0.4: lies below tau (0.5), which no memorized seed does; raise it, or lower tau too"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing(given: dict[str, Any], words: str) -> None:
    assert refusal(lambda: Options(**given)) == words


# ------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("component", ["unet", "scheduler"])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipeline", "_class_name"])
def test_configs_that_name_code(tmp_path: Path, component: str, key: str) -> None:
    config = {"_class_name": "os.system"} if key == "_class_name" else {key: "theirs.py"}
    path = tmp_path / config_file(component)
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    words = f"{path}: its {key} names code that is not this tool's to run; remove it"
    assert refusal(lambda: read_config(tmp_path, component)) == words
    metadata = {METADATA_KEY: json.dumps({component: config})}
    words = (
        f"m: its metadata entry nemo_prune.config has a {key} that names code, which is not this tool's "
        f"to run; remove it"
    )
    assert refusal(lambda: metadata_overrides(metadata, Path("m"))) == words


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / config_file("unet")
    assert refusal(lambda: read_config(tmp_path, "unet")) == (
        f"{tmp_path}: no unet/config.json in this config folder"
    )
    path.parent.mkdir()
    os.mkfifo(path)
    assert refusal(lambda: read_config(tmp_path, "unet")) == f"{path}: is not a regular file"


@pytest.mark.parametrize("side", [10, 1025, True])
def test_pictures_of_sizes_that_no_score_is_taken_at(side: int) -> None:
    metadata = {METADATA_KEY: json.dumps({"unet": {"sample_size": side}})}
    configs = Configs("sd1", metadata, Path("m"), None)
    assert refusal(lambda: configs.sample_size({"sample_size": side}, "epsilon")) == (
        f"m: its config has the sample_size {side} where 11 to 1024 is due"
    )


# ------------------------------------------------------------------------------- files


def test_a_neuron_named_twice(tmp_path: Path) -> None:
    checkpoint = recognize(write(tmp_path / "m", unet(SD1)))
    twice = [Neuron(DOWN, 1)] * 2
    assert refusal(lambda: write_model(checkpoint, twice, tmp_path / "o", {})) == (
        f"{tmp_path / 'm'}: row 1 of {short_name(DOWN)} is to be zeroed twice; name each neuron once"
    )
    assert not (tmp_path / "o").exists()


def test_a_header_that_would_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = recognize(write(tmp_path / "m", unet(SD1)))
    monkeypatch.setattr("nemo_prune.checkpoint.apply.MAX_HEADER_BYTES", 1000)
    assert refusal(lambda: write_model(checkpoint, [Neuron(DOWN, 1)], tmp_path / "o", {})) == (
        f"{tmp_path / 'o'}: its header would be larger than safetensors allows"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_header_of_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m", unet(SD1))
    commas = read_header(path).raw.count(b",")
    monkeypatch.setattr("nemo_prune.files.header._MAX_COMMAS", 9)
    words = f"{path}: has a header of {commas} entries, far more than a model needs: the file is damaged"
    assert refusal(lambda: recognize(path)).startswith(words)


def test_a_journal_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    path.write_bytes(bytes(11))
    monkeypatch.setattr("nemo_prune.scoring.journal._MAX_BYTES", 10)
    assert refusal(lambda: Journal.open(path, {}, resume=True)) == (
        f"{path}: is too large for a journal of this tool; remove it"
    )


def test_places_where_the_demo_cannot_put_its_folder(tmp_path: Path) -> None:
    assert refusal(lambda: run_demo(tmp_path, Told())) == (
        f"{tmp_path}: exists already; remove it, or give another folder"
    )
    absent = tmp_path / "none" / "demo"
    assert refusal(lambda: run_demo(absent, Told())) == (
        f"{absent}: cannot be made (No such file or directory)"
    )


@pytest.mark.parametrize("skipped", [None, "m: holds no VAE"])
def test_a_demo_without_pictures_says_so(tmp_path: Path, skipped: str | None) -> None:
    data = {
        "prompts": [{"pictures": None}], "ordinary": [{"pictures": None}], "drift": {"ratio": None},
        "pictures": {"images": 0} | ({"skipped": skipped} if skipped else {}),
    }  # fmt: skip
    part = demo_part([], data)
    assert part["target_similarity_before"] is part["ordinary_similarity"] is None
    lines = demo_lines(tmp_path, part)
    why = f": {skipped}" if skipped else ""
    assert lines[:2] == [
        "precision against the planted neurons: 0.00",
        f"no pictures were compared with training pictures{why}",
    ]
    assert "None" not in "".join(lines)


@pytest.mark.parametrize("whole", [False, True])
def test_calibrations_of_something_else(tmp_path: Path, whole: bool) -> None:
    found = calibration()
    words = "is for a model with other value layers; make one for this model with nemo-prune calibrate"
    if not whole:
        about = {key: value for key, value in found.about.items() if key != "scores"}
        found = Calibration(about, found.statistics, None)
        words = "is incomplete; make it anew with nemo-prune calibrate"
    path = tmp_path / "c.safetensors"
    write_calibration(found, path, overwrite=False)
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors"))
    engine: Any = SimpleNamespace()
    options = Options(calibration=path)
    assert refusal(lambda: Ordinary(engine, checkpoint, options, None, Told())) == f"{path}: {words}"
