"""A sample's noise, trajectory and attribution to the last digit in batches of any size."""

from pathlib import Path

import pytest
import torch
from tiny import write_small

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.options import Options
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.trajectory import Schedule
from nemo_prune.search.protocol import Attribute


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_else_is_in_a_batch_does_not_matter(family: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.safetensors", side=16, family=family)
    engine = open_engine(open_checkpoint(path), Options(device="cpu"))
    prompts = engine.prompts(["a dog", "a cat on a mat", "the sea"])
    alone = engine.prompts(["the sea"])[0]
    assert torch.equal(alone.text, prompts[2].text)
    samples = [Sample(prompts[place % 3], frozenset(), place) for place in range(7)]
    expected = _measured(engine, samples, 1)
    for size in (2, 3, 5, 16):
        for one, other in zip(_measured(engine, samples, size), expected, strict=True):
            assert torch.equal(one, other), size


def _measured(engine: Engine, samples: list[Sample], size: int) -> list[torch.Tensor]:
    engine._grow, engine.batch_size = False, size
    differences = engine.evaluate(samples)
    ends = engine.trajectories(samples[:3], Schedule((981,), 7.0))
    job = Job(samples[0].prompt, None, dict(enumerate(differences[:2])),  # type: ignore[arg-type]
              layers=list(engine.model.value_layers)[:1])  # fmt: skip
    engine.batch_size = 3 * size
    attribution = engine.attribution(job, Attribute((0, 1)))
    return [torch.stack(differences), torch.stack(ends), torch.tensor(list(attribution.values()))]
