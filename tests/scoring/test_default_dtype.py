"""Figures hang on a seed and the options, not on what dtype the program around has torch make."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import SIDE, single_file
from test_further import parts, schedule
from test_pixart import pixart

import nemo_prune
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.model import hub
from nemo_prune.options import Options
from nemo_prune.report.pictures import draw, similarity
from nemo_prune.scoring.criterion import best_pairs
from nemo_prune.scoring.embedding import random_start
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.opening import open_engine, open_pipeline, trajectory_schedule
from nemo_prune.search.protocol import Attribute

OTHERS = (torch.bfloat16, torch.float64)
# Calls that make a tensor of a default dtype where none is said; of the numbers handed over too.
MAKERS = {"arange", "empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def lcm(place: Path) -> Path:
    hub.StableDiffusionPipeline(
        **parts({"time_cond_proj_dim": 64}), scheduler=schedule(hub.LCMScheduler),
        requires_safety_checker=False,
    ).save_pretrained(place)  # fmt: skip
    return place


MODELS: dict[str, Any] = {
    "sd1": lambda place: single_file(place / "m.safetensors", fewer=True),
    "sd2": lambda place: single_file(place / "m.safetensors", "sd2", fewer=True),
    "sdxl": lambda place: single_file(place / "m.safetensors", "sdxl"),
    "inpainting": lambda place: single_file(place / "m.safetensors", in_channels=9, fewer=True),
    "lcm": lcm,
    "pixart": lambda place: pixart(place, "sigma"),
}


def figures(path: Path, kind: str) -> dict[str, Any]:
    """What a model is asked for, as plain numbers and bytes."""
    checkpoint, options = open_checkpoint(path), Options(device="cpu")
    engine: Engine = open_engine(checkpoint, options)
    (prompt,) = engine.prompts(["a cat"])
    names = [checkpoint.value_layers[0].name]
    off = frozenset({Neuron(names[0], 3)})
    baseline = engine.baseline(prompt, [0, 1, 2])
    job: Any = Job(prompt, None, dict(baseline), layers=names)  # type: ignore[arg-type]
    ends = engine.trajectories([Sample(prompt, off, 0)], trajectory_schedule(engine.model, "trajectory"))
    found = {
        "text": prompt.text,
        "differences": torch.stack(list(baseline.values())),
        "scores": best_pairs(baseline, published=kind == "sd1"),
        "pruned": engine.probe(prompt, off, [3, 4])[0],
        "attribution": engine.attribution(job, Attribute((0, 1))),
        "trajectory": ends[0],
        "random embedding": random_start(prompt, engine, 0).text,
        "prediction": engine.model.prediction.as_json() if engine.model.prediction else None,
    }
    if kind != "inpainting":
        ((one, other),) = draw(open_pipeline(checkpoint, options), ["a cat"], [0, 1], steps=1)
        found["picture"], found["likeness"] = one.tobytes(), similarity(one, other)
    return {
        name: (value.dtype, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
    }


@pytest.mark.parametrize("kind", MODELS)
def test_a_models_figures_are_the_same_whatever_the_default_dtype(kind: str, tmp_path: Path) -> None:
    path = MODELS[kind](tmp_path)
    wanted = figures(path, kind)
    assert wanted["differences"][0] == torch.float32
    for dtype in OTHERS:
        with default(dtype):
            found = figures(path, kind)
            assert torch.get_default_dtype() == dtype
        assert {n for n in wanted if found[n] != wanted[n]} == set()


def test_python_gives_the_same_scores_whatever_the_default_dtype(tmp_path: Path) -> None:
    path = single_file(tmp_path / "m.safetensors", fewer=True)
    drawn = torch.rand(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def scores() -> tuple[Any, Any]:
        found = nemo_prune.detect(path, ["a cat", "a dog"], tau=0.3, gate=0.9, device="cpu", seeds=3,
                                  cache=False, force=True, all_seeds=True)  # fmt: skip
        of_noise = nemo_prune.memorization_scores(drawn)
        return [(one.score, one.noise_norm) for one in found.detections], (
            of_noise.dtype,
            of_noise.tolist(),
        )

    wanted = scores()
    for dtype in OTHERS:
        with default(dtype):
            assert scores() == wanted


def test_no_tensor_is_made_without_saying_of_what_dtype() -> None:
    """Whoever calls the library may have changed torch's default, in this thread or another."""
    silent = [
        f"{path}:{node.lineno}"
        for path in sorted(Path(nemo_prune.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in {("torch", maker) for maker in MAKERS}
        and "dtype" not in {keyword.arg for keyword in node.keywords}
    ]
    assert silent == []
