"""Ten million captions through the streaming screen, with known scores in the denoiser's place.

    python -m benchmarks.scale                       # ten million captions, some minutes
    python -m benchmarks.scale --captions 200000     # a trial

All but the two networks and the similarity is the product's: the list is read, checked and freed of
repetitions, prompts are tokenized and padded, every prompt's screening asks for seeds until it is clear,
rows are written, and the journal kept. Printed as JSON: captions per second, the seconds until the first
ones are scored, the process's memory on the way, and whether the findings are those that were planted.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from nemo_prune.cli.main import ENVIRONMENT
from nemo_prune.files.streams import Block, Lists
from nemo_prune.model.denoiser import TOKENS, LoadedModel, TextEncoder, Tokens
from nemo_prune.model.tokenizer import load_tokenizer
from nemo_prune.options import Silent
from nemo_prune.scoring.detect import Screening
from nemo_prune.scoring.engine import Engine, Prompt
from nemo_prune.scoring.streaming import score_stream
from nemo_prune.scoring.table import Rows, Table

SEEDS = 10
GATE = 0.5
MARGINS = (0.3, 0.2, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01)
PLANTED = 10_007  # one caption of so many is memorized
REPEATED = 50  # one line of so many repeats an earlier one
_WORDS = (
    *("old", "small", "red", "photo", "dog", "house", "boat", "river"),
    *("street", "woman", "child", "rain", "fog", "night", "quiet", "wooden"),
)


def caption(number: int) -> str:
    """The caption of a number: nine words, as on the web, and the number."""
    drawn = number * 2654435761 & 0xFFFFFFFFF
    return " ".join([_WORDS[drawn >> shift & 15] for shift in range(0, 36, 4)]) + f" {number}"


def numbers(count: int) -> Iterator[int]:
    """The numbers of the captions of a list of so many lines, some of them repetitions."""
    for number in range(count):
        # An odd half: no line of that number was one of a repetition.
        yield number // 2 | 1 if number > REPEATED and number % REPEATED == 0 else number


def is_planted(number: int) -> bool:
    return number % PLANTED == 7


def known_score(number: int, seeds: int) -> float:
    """The score of a caption over its first seeds; of a planted one it shows from 2, 3 or 4 on."""
    share = (number * 2246822519 & 0xFFFFFFFF) / 2**32
    if is_planted(number) and seeds >= 2 + number % 3:
        return 0.6 + share / 4
    return 0.15 + share / 4 + 0.005 * seeds


@dataclass(frozen=True, eq=False)
class Numbered(Prompt):
    """A prompt that knows its number, in the place of an embedding."""

    number: int = 0


class KnownScores(Engine):
    """An engine with known scores in the denoiser's place."""

    def __init__(self) -> None:
        model: Any = SimpleNamespace(
            text_encoders=[TextEncoder(load_tokenizer(), None, TOKENS)], is_transformer=False,
            max_tokens=TOKENS, device=torch.device("cpu"),
        )  # fmt: skip
        model._texts = MethodType(LoadedModel._texts, model)
        model._token_ids = MethodType(LoadedModel._token_ids, model)
        model.token_reader = MethodType(LoadedModel.token_reader, model)
        super().__init__(model, timestep=0, batch_size=256)

    def prompts(self, texts: Sequence[str], tokens: Tokens | None = None) -> list[Prompt]:
        embeddings = torch.zeros(len(texts), 1)
        if tokens is None:
            return [Numbered(embeddings[0])]  # the empty prompt
        return [
            Numbered(embeddings[place], number=int(text.rpartition(" ")[2]))
            for place, text in enumerate(texts)
        ]

    def evaluate(self, samples: Any, on_samples: Any = None, on_noise: Any = None) -> list[Any]:
        """The prompt's number in the place of every noise difference."""
        del on_samples
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            if on_noise is not None:
                on_noise(batch, torch.zeros(len(batch), 1, 1, 1))
        return [sample.prompt.number for sample in samples]


def known_pairs(prompts: Sequence[Mapping[int, Any]], **_: Any) -> list[dict[int, float]]:
    """Known scores in the place of the similarity of every prompt's seeds."""
    return [dict.fromkeys(one, known_score(next(iter(one.values())), len(one))) for one in prompts]


def resident_mb() -> float:
    """The memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def simulate(
    folder: Path, count: int, say: Callable[[str], None] = lambda _line: None, suffix: str = "csv"
) -> dict[str, Any]:
    """Screen a list of `count` lines in `folder`; what it took, as plain JSON."""
    path = folder / "captions.txt"
    with path.open("w") as file:
        file.writelines(f"{caption(number)}\n" for number in numbers(count))
    engine = KnownScores()
    screen = Screening(engine, range(SEEDS), GATE, MARGINS)
    rows = Rows(Table(folder / f"scores.{suffix}"), SEEDS, {"run": "simulated"}, [path])
    found: list[int] = []
    wrong: list[int] = []
    memory: list[tuple[int, float]] = []
    first = 0.0
    began, spent, own = time.monotonic(), time.process_time(), time.thread_time()
    lists = Lists((path,))
    stream = lists.stream()

    def on_rows(made: list[dict[str, Any]], block: Block) -> None:
        nonlocal first
        first = first or time.monotonic() - began
        rows.add(made, block)
        for row, placed in zip(made, block.prompts, strict=True):
            number = int(placed.text.rpartition(" ")[2])
            if row["memorized"]:
                found.append(number)
            if row["memorized"] != is_planted(number):
                wrong.append(number)
        if not memory or rows.found.scored - memory[-1][0] >= count / 20:
            memory.append((rows.found.scored, resident_mb()))
            say(
                f"{rows.found.scored} captions, {time.monotonic() - began:.0f} s, {memory[-1][1]:.0f} MB"
            )

    with patch("nemo_prune.scoring.searching.best_pairs_of_each", known_pairs):
        score_stream(engine, stream, screen, SEEDS, GATE, rows.found, Silent(), on_rows=on_rows)
    seconds, processor = time.monotonic() - began, time.process_time() - spent
    own = time.thread_time() - own
    rows.finish(Silent())
    expected = [number for number in range(count) if is_planted(number) and not _left_out(number)]
    scored = rows.found.scored
    return {
        "lines": count, "captions": scored, "merged": rows.found.position.merged,
        "first_scored_after_s": round(first, 2), "seconds": round(seconds, 1),
        "captions_per_s": round(scored / seconds), "processor_s": round(processor, 1),
        "processor_s_of_the_reader": round(processor - own, 1),
        "captions_per_processor_s": round(scored / processor),
        "findings": len(found), "exact": found == expected and not wrong,
        "memory_mb": [round(held) for _, held in memory],
        "table_mb": round((folder / f"scores.{suffix}").stat().st_size / 1e6),
    }  # fmt: skip


def _left_out(number: int) -> bool:
    """Whether the line of that number repeats another caption, so its own never stands there."""
    return number > REPEATED and number % REPEATED == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000_000)
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(simulate(Path(folder), asked.captions, print)))


if __name__ == "__main__":
    main()
