"""Scores, trajectories and attributions on every device that this machine has, against the CPU's."""

from pathlib import Path

import pytest
import torch
from tiny import write_small

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model.loading import load_model
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.trajectory import schedule_from
from nemo_prune.search.protocol import Attribute

# Half precision as each device computes it fast; the CPU in float32 is what all are compared with.
CASES = [
    ("cpu", torch.bfloat16),
    *([("cuda", one) for one in (torch.float32, torch.float16)] if torch.cuda.is_available() else []),
    *([("mps", torch.float32)] if torch.backends.mps.is_available() else []),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("devices") / "tiny.safetensors", side=16)


def measured(
    path: Path, device: str, dtype: torch.dtype
) -> tuple[list[torch.Tensor], dict[Neuron, float]]:
    model = load_model(recognize(path), device=torch.device(device), dtype=dtype)
    engine = Engine(model, timestep=961)
    (prompt,) = engine.prompts(["a cat"])
    layers = [name for name in model.value_layers if not name.startswith("up")]
    off = frozenset({Neuron(layers[0], 0), Neuron(layers[-1], 5)})
    baseline = engine.baseline(prompt, range(3))
    ends = engine.trajectories([Sample(prompt, off, 7)], schedule_from(981, 3))
    job = Job(prompt, iter(()), baseline, layers=layers)  # type: ignore[arg-type]
    attribution = dict(engine.attribution(job, Attribute((0, 1))))
    pictures = [*baseline.values(), *engine.differences(prompt, [0], off), *ends]
    return [one.float().cpu() for one in pictures], attribution


@pytest.mark.parametrize(("device", "dtype"), CASES, ids=str)
def test_every_device_gives_what_the_cpu_gives(path: Path, device: str, dtype: torch.dtype) -> None:
    pictures, attribution = measured(path, device, dtype)
    expected, known = measured(path, "cpu", torch.float32)
    loose = 0.15 if dtype != torch.float32 else 1e-3
    for one, other in zip(pictures, expected, strict=True):
        assert one.isfinite().all()
        assert (one - other).abs().mean() < loose
    assert attribution.keys() == known.keys()
    assert all(value == value for value in attribution.values())
    values = torch.tensor([[attribution[n], known[n]] for n in known]).T
    assert torch.corrcoef(values)[0, 1] > (0.8 if dtype != torch.float32 else 0.99)
