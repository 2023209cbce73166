"""Every broken input gets one line that names it, exit code 2, and nothing is written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rawfiles
from click.testing import CliRunner
from corpus import MANIFESTS, MODELS, PROMPTS, Fault, manifest

from nemo_prune.cli.main import main

# Of the processor, which does not depend on what else the machine does just then.
SECONDS, BYTES = 2.0, 300 * 2**20


def there(folder: Path) -> dict[str, int]:
    """Everything in the folder, and when it was last written to."""
    return {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}


def refused(folder: Path, made: Path, words: str, *arguments: object) -> None:
    before, started = there(folder), time.process_time()
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    seconds = time.process_time() - started
    assert result.exit_code == 2, (result.output, result.exception)
    one_line(result.stderr, made, words)
    assert result.stdout == ""
    assert there(folder) == before
    assert seconds < SECONDS


def one_line(stderr: str, made: Path, words: str) -> None:
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("nemo-prune: ")
    assert stderr[:-1].isprintable()
    assert str(made) in stderr
    assert words in stderr
    assert len(stderr) < 2 * len(str(made)) + 400


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return rawfiles.sd1(tmp_path / "sound.safetensors")


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(MODELS) + len(MANIFESTS) + len(PROMPTS) >= 60


def test_the_inputs_are_sound_but_for_their_fault(tmp_path: Path, model: Path) -> None:
    """Otherwise the tests below could pass for a reason that has nothing to do with the fault."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest()))
    result = CliRunner().invoke(main, ["apply", str(model), "--manifest", str(path),
                                       "-o", str(tmp_path / "o")])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(main, ["inspect", str(model)]).exit_code == 0


@pytest.mark.parametrize("name", MODELS)
def test_models(tmp_path: Path, name: str) -> None:
    fault: Fault = MODELS[name]
    folder, other = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    other.mkdir()
    made = fault.make(folder)
    orders, prompts = other / "manifest.json", other / "prompts.txt"
    orders.write_text(json.dumps(manifest()))
    prompts.write_text("a red fox\n")
    out = other / "out.safetensors"
    refused(folder, made, fault.words, "inspect", made)
    refused(folder, made, fault.words, "inspect", made, "--json")
    refused(other, made, fault.words, "apply", made, "--manifest", orders, "-o", out)
    refused(other, made, fault.words, "prune", made, "--prompts", prompts, "-o", out)
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(tmp_path: Path, model: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    made = MANIFESTS[name].make(folder)
    before, content = there(tmp_path), model.read_bytes()
    words = MANIFESTS[name].words
    # Where it is sound in itself, it is the model that it does not fit.
    named = model if "rows 0" in words or "value layer" in words else made
    out = tmp_path / "out.safetensors"
    refused(folder, named, words, "apply", model, "--manifest", made, "-o", out)
    assert there(tmp_path) == before
    assert model.read_bytes() == content


@pytest.mark.parametrize("option", ["--prompts", "--calibration-prompts"])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(tmp_path: Path, model: Path, name: str, option: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    made = PROMPTS[name].make(folder)
    (tmp_path / "sound.txt").write_text("a red fox\n")
    arguments = ["--prompts", tmp_path / "sound.txt"] if option != "--prompts" else []
    before = there(tmp_path)
    refused(folder, made, PROMPTS[name].words, "prune", model, *arguments, option, made,
            "-o", tmp_path / "out.safetensors", "--manifest", tmp_path / "m.json")  # fmt: skip
    assert there(tmp_path) == before


# What could cost time or memory, and one of the rest: a process of its own tells the truth.
MEASURED = [name for name in MODELS if name.startswith("large") or "bomb" in name or "GB" in name] + [
    "announces 100 MB",
    "header: deep",
    "header: thousands of digits",
    "/dev/zero",
    "fifo",
    "nothing there",
]

# Not what `getrusage` says of a child: that starts from its parent's peak.
PROGRAM = """
import re, sys, time
from pathlib import Path
from nemo_prune.cli.main import main
try:
    main(sys.argv[2:])
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    Path(sys.argv[1]).write_text(f"{peak} {time.process_time()}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("name", MEASURED)
def test_time_and_memory_of_inspect(tmp_path: Path, name: str) -> None:
    made = MODELS[name].make(tmp_path)
    told = tmp_path / "told"
    command = [sys.executable, "-c", PROGRAM, str(told), "inspect", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    one_line(done.stderr, made, MODELS[name].words)
    kilobytes, seconds = told.read_text().split()
    assert float(seconds) < SECONDS
    assert int(kilobytes) * 1024 < BYTES
