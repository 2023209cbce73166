"""What two workers do against one, with one thread each: `detect` of one list with the demo's model.

    python -m benchmarks.workers

The time counts from when the models are loaded. On two processors that nothing else uses.
"""

import time
from argparse import ArgumentParser
from contextlib import closing
from pathlib import Path

import torch

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.files.prompts import bundled_captions
from nemo_prune.options import Options
from nemo_prune.report.demo import CHECKPOINT
from nemo_prune.scoring.detect import detect
from nemo_prune.scoring.opening import open_engine


def rate(model: Path, workers: int, prompts: int) -> float:
    """Prompts a second, each with two seeds."""
    torch.set_num_threads(workers)  # which they share: one thread each
    options = Options(device="cpu", seeds=2, workers=workers)
    with closing(open_engine(open_checkpoint(model), options, workers=True)) as engine:
        texts = bundled_captions()[:prompts]
        detect(engine, texts[:8], range(2), 1.0, early=False)  # the first batches are small
        began = time.monotonic()
        detect(engine, texts, range(2), 1.0, early=False)
        return prompts / (time.monotonic() - began)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(CHECKPOINT))
    parser.add_argument("--prompts", type=int, default=64)
    given = parser.parse_args()
    one, two = (rate(given.model, workers, given.prompts) for workers in (1, 2))
    print(f"one worker {one:.2f} prompts/s, two {two:.2f}: {two / one:.2f} times")


if __name__ == "__main__":
    main()
