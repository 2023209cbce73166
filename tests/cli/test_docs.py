"""Every command and every Python example of the README and the documentation, run as it stands.

On the demo checkpoint, in the order of each page, in a folder that holds the files that they name. What
is ordinary comes from the calibration that is shipped.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_readme import PAGES
from tiny import run

from nemo_prune.audit.strength import EFFORTS, Chase, Effort, Style
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import read_prompts
from nemo_prune.model.loading import load_pipeline
from nemo_prune.report.demo import CHECKPOINT, DATA

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

COMMANDS = {
    page: found
    for page, text in PAGES.items()
    if (found := re.findall(r"^    (nemo-prune .+)$", text, re.MULTILINE))
}
# Pages that begin after another one's work, and the command that makes what they take as given.
AFTER = ("docs/audit.md", "docs/ci.md")
_PRUNED = "nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors --manifest neurons.json"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGES["docs/python.md"], re.DOTALL)
README_EXAMPLES = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a diffusers folder."""
    pipeline = load_pipeline(recognize(CHECKPOINT), device=torch.device("cpu"), dtype=torch.float32)
    pipeline.save_pretrained(folder := tmp_path_factory.mktemp("whole"))
    return folder


@pytest.fixture
def folder(
    tmp_path: Path, shared: Path, demo_calibration: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """What the pages take as given: a model as file and folder, prompts, a calibration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(shared / "demo-cache"))
    few = Effort(
        4, 2, drawn=1, draw_seeds=1, styles=(Style("dpm++ 2m", 4, 5.0, 1),), plain_steps=4,
        chase=Chase((0, 2), batch=1, random=0, pictures=1, controls=1, traced=1, deep=False),
    )  # fmt: skip
    monkeypatch.setitem(EFFORTS, "quick", few)
    # What trajectories look like, from fewer seeds and fewer ordinary captions.
    monkeypatch.setattr("nemo_prune.scoring.detection_run.ORDINARY", 4)
    monkeypatch.setattr("nemo_prune.scoring.consistency.SEEDS", range(20_000, 20_002))
    monkeypatch.setattr("nemo_prune.localize.confirm.SEEDS", 4)
    for module, count in (("audit.inputs", 4), ("audit.pictures", 1)):
        monkeypatch.setattr(f"nemo_prune.{module}.UNRELATED", count)
    for module in ("pictures", "triggers", "embeddings"):
        monkeypatch.setattr(f"nemo_prune.audit.{module}.REFERENCES", 2)
    Path("model.safetensors").symlink_to(CHECKPOINT)
    shutil.copy(demo_calibration, "calibration.safetensors")
    memorized = read_prompts(DATA / "memorized.txt").texts
    Path("mem.txt").write_text(memorized[0] + "\n")
    Path("captions.txt").write_text("\n".join([memorized[0], "a small boat", "a green hill"]) + "\n")
    shutil.copy(DATA / "ordinary.txt", "ordinary.txt")
    Path("few.txt").write_text("a small boat\na green hill\na red car\n")
    shutil.copytree(whole, "diffusers-folder")
    yield tmp_path
    shutil.rmtree(tmp_path)


def cheaper(page: str, arguments: list[str]) -> list[str]:
    """The same command at less cost: what is ordinary is known, seeds and steps of pictures are few.

    Trajectories confirm what the README's command found; what the others find is the same.
    """
    verb = arguments[0]
    if verb == "compare":
        few = "--ordinary few.txt --ordinary-images 1 --images 2 --picture-steps 2 --methods none,ren"
        return [*arguments, *few.split(), "--calibration", "calibration.safetensors", "--force"]
    searching = {"prune", "localize", "model.safetensors", "diffusers-folder"}
    more: list[str] = []
    if verb in searching | {"detect", "check", "audit"} and "--calibration" not in arguments:
        more += ["--calibration", "calibration.safetensors", "--force"]
    if verb in searching and page != "README.md" and "--confirm" not in arguments:
        more += ["--confirm", "none"]
    if verb in searching | {"detect", "check", "verify", "audit"}:
        more += ["--seeds", "4"]
    if {"--report", "--card"} & set(arguments) and verb != "audit":
        more += ["--picture-steps", "4", "--images", "1", "--ordinary-images", "1"]
        more += ["--ordinary", "few.txt"]
    return [*arguments, *more]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command that several pages begin after has left, as soon as it ran for one of them."""
    return tmp_path_factory.mktemp("pruned")


def begin(page: str, kept: Path) -> None:
    """Put there what the page takes as given."""
    if page in AFTER:
        names = ("clean.safetensors", "neurons.json")
        if not any(kept.iterdir()):
            done = run(*cheaper(page, shlex.split(_PRUNED)[1:]))
            assert done.exit_code == 0, (done.output, done.stderr)
            for name in names:
                shutil.copy(name, kept)
        else:
            for name in names:
                shutil.copy(kept / name, name)


@pytest.mark.parametrize("page", COMMANDS)
def test_every_command_runs(page: str, kept: Path) -> None:
    given = Path("calibration.safetensors").read_bytes()
    begin(page, kept)
    for command in COMMANDS[page]:
        arguments = shlex.split(command.replace("\\", ""))[1:]
        if arguments == ["demo"]:
            continue  # test_demo runs it
        if arguments[0] == "calibrate":
            Path("calibration.safetensors").unlink()
        result = run(*cheaper(page, arguments))
        # 1 is a finding, such as a picture that a few steps leave unclear.
        assert result.exit_code in (0, 1), (command, result.output, result.stderr)
        for option in ("-o", "--csv", "--report", "--card", "--manifest", "--undo"):
            if option in arguments:
                assert Path(arguments[arguments.index(option) + 1]).exists(), (command, option)
    assert Path("calibration.safetensors").read_bytes() == given, "from the same cache"
    if Path("restored.safetensors").exists():
        assert Path("restored.safetensors").read_bytes() == CHECKPOINT.read_bytes()


def test_every_example_of_the_python_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    text = "".join(EXAMPLES)
    assert text.count('"seeds": 10') == text.count("    images=1,\n") == 1
    for number, example in enumerate(EXAMPLES):
        # As many seeds as `cheaper` takes.
        example = example.replace('"seeds": 10', '"seeds": 4')
        example = example.replace("    images=1,\n", "    images=1, seeds=4,\n")
        exec(compile(example, f"docs/python.md, example {number}", "exec"), names)
    assert [record.status for record in names["manifest"].prompts] == ["suppressed"]
    assert [one.memorized for one in names["found"].detections] == [True]
    assert Path("report.html").exists()
    assert float(names["scores"].max()) > names["found"].thresholds.tau
    assert "note:" not in capsys.readouterr().err, "nothing is printed but what the examples print"


def test_the_readmes_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import nemo_prune

    (example,) = README_EXAMPLES
    whole = nemo_prune.localize

    def known(model: Any, prompts: Any) -> Any:
        return whole(model, prompts, calibration="calibration.safetensors", confirm="none")

    monkeypatch.setattr(nemo_prune, "localize", known)
    exec(compile(example, "README.md", "exec"), {})
    assert Path("from-python.safetensors").exists()
