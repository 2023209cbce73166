"""No network, no code out of a file, and no prompt where nobody asked for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from corpus import MODELS

from nemo_prune.cli.main import main

MARKER = "zebrafish marker caption"
QUICK = ("--seeds", "3", "--device", "cpu", "--layers", "down_blocks.0.attentions.0*",
         "--tau", "0", "--gate", "0")  # fmt: skip

# Raises at the first attempt to name or reach another machine, whoever makes it.
SEALED = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("network:", event, arguments, file=sys.stderr)
        raise SystemExit(99)
sys.addaudithook(hook)
from nemo_prune.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_small(tmp_path_factory.mktemp("model") / "tiny.safetensors", side=16)


def alone() -> list[str]:
    """A prefix that runs a command with no network but loopback, where that may be had."""
    prefix = ["unshare", "-rn"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return []
    return prefix


def test_a_whole_run_without_network_tells_no_prompt(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "written"
    folder.mkdir()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{MARKER}\nanother {MARKER} {'that is too long ' * 40}\n")
    ordinary = tmp_path / "ordinary.txt"  # few: all bundled captions take longer
    ordinary.write_text("".join(f"an ordinary caption {number}\n" for number in range(30)))
    command = [*alone(), sys.executable, "-c", SEALED, "prune", str(model), "--prompts", str(prompts),
               "-o", str(folder / "out.safetensors"), "--manifest", str(folder / "m.json"),
               "--calibration-prompts", str(ordinary), "--json", *QUICK]  # fmt: skip
    done = subprocess.run(command, capture_output=True, cwd=folder)
    assert done.returncode in (0, 1), done.stderr.decode()
    assert b"prompt 1:" in done.stderr  # it is named, by its number
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2
    for content in (done.stdout, done.stderr, *(path.read_bytes() for path in files)):
        assert b"zebrafish" not in content


def test_the_seal_holds() -> None:
    """Otherwise the test above could pass whatever happens."""
    code = SEALED.partition("from nemo_prune")[0] + "import socket\nsocket.create_connection(('::1', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 99


def test_prompts_are_told_to_who_asks(model: Path, tmp_path: Path) -> None:
    prompts, kept = tmp_path / "prompts.txt", tmp_path / "m.json"
    prompts.write_text(f"{MARKER}\n")
    arguments = ["localize", str(model), "--prompts", str(prompts), "-o", str(kept), "--show-prompts"]
    result = CliRunner().invoke(main, [*arguments, *QUICK])
    assert result.exit_code in (0, 1), result.output
    assert json.loads(kept.read_text())["prompts"][0]["text"] == MARKER


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_errors_about_prompts_do_not_quote_them(model: Path, tmp_path: Path, suffix: str) -> None:
    prompts = tmp_path / f"prompts.{suffix}"
    prompts.write_bytes(
        f'"{MARKER}"\n{{"{MARKER}": 1}}\n'.encode() + (b"\xff" if suffix == "txt" else b"")
    )
    result = CliRunner().invoke(main, ["prune", str(model), "--prompts", str(prompts),
                                       "-o", str(tmp_path / "o")])  # fmt: skip
    assert result.exit_code == 2
    assert "zebrafish" not in result.output


# ------------------------------------------------------------------------------- foreign configs

CODE = {"auto_map": {"AutoModel": "evil.py"}, "trust_remote_code": True, "custom_pipeline": "evil"}


@pytest.mark.parametrize("key", CODE)
@pytest.mark.parametrize("component", ["unet", "text_encoder", "scheduler"])
@pytest.mark.parametrize("place", ["folder", "metadata"])
def test_configs_cannot_name_code(tmp_path: Path, key: str, component: str, place: str) -> None:
    refused(tmp_path, {component: {key: CODE[key]}}, place, key)


@pytest.mark.parametrize(
    ("component", "name"),
    [("unet", "FluxTransformer2DModel"), ("scheduler", "os.system"), ("scheduler", "UNet2DModel")],
)
@pytest.mark.parametrize("place", ["folder", "metadata"])
def test_configs_cannot_name_other_classes(
    tmp_path: Path, component: str, name: str, place: str
) -> None:
    refused(tmp_path, {component: {"_class_name": name}}, place, "_class_name")


@pytest.mark.parametrize("side", [0, -1, 10, 10**9, True])
@pytest.mark.parametrize("place", ["folder", "metadata"])
def test_latents_of_an_impossible_size(tmp_path: Path, side: object, place: str) -> None:
    refused(tmp_path, {"unet": {"sample_size": side}}, place, "sample_size")


def refused(tmp_path: Path, changes: dict[str, dict[str, object]], place: str, words: str) -> None:
    model, extra = tmp_path / "m.safetensors", []
    if place == "metadata":
        unet = {"attention_head_dim": 8} | changes.get("unet", {})
        told = json.dumps(changes | {"unet": unet})
        tiny.write_tiny(model, metadata={"nemo_prune.config": told}, layers=1)
    else:
        tiny.write_tiny(model, layers=1)
        folder = tiny.config_folder(tmp_path / "configs", layers=1)
        for component, change in changes.items():
            name = "scheduler_config.json" if component == "scheduler" else "config.json"
            path = folder / component / name
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        extra = ["--config", str(folder)]
    one_line(tmp_path, model, extra, words)


def one_line(tmp_path: Path, model: Path, extra: list[str], words: str) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.safetensors"
    prompts.write_text("a red fox\n")
    arguments = ["prune", str(model), "--prompts", str(prompts), "-o", str(out), *QUICK, *extra]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    # How many prompts were read is said before the model is loaded.
    (line,) = (text for text in result.stderr.splitlines() if not text.startswith("note: 1 prompts: "))
    assert words in line
    assert not out.exists()


@pytest.mark.parametrize("kind", ["fifo", "deep", "not json", "folder", "missing"])
def test_broken_config_files(model: Path, tmp_path: Path, kind: str) -> None:
    folder = tiny.config_folder(tmp_path / "configs", layers=1)
    path = folder / "unet" / "config.json"
    path.unlink()
    if kind == "fifo":
        MODELS["fifo"].make(tmp_path).rename(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("[" * 100_000 if kind == "deep" else "{oops")
    one_line(tmp_path, model, ["--config", str(folder)], "config.json")
