"""What the search costs on the demo checkpoint, beside the procedure as the paper states it.

    python -m benchmarks.search [--json] [--repeats 3] [--device auto] [--precision auto]

Both see the same loaded model, ladders and tau; they run in turn in one process, the literal one
with 10 seeds an evaluation, one candidate at a time, batches of 10. Samples and FLOPs are counted
and exact; seconds are medians of `--repeats` runs and mean something only as a ratio. The paper's
public code takes two passes an evaluation; `public_code_samples` is the literal procedure's count
with that.

The stress table (`benchmarks.stress`) follows: random oracles at growing sizes, the paper's too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stress import format_table, stress_table
from nemo_prune.checkpoint.neurons import union
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import read_prompts
from nemo_prune.options import Options
from nemo_prune.report.demo import CHECKPOINT, DATA, precision
from nemo_prune.scoring.activations import activation_statistics, ladders
from nemo_prune.scoring.detect import score_paths
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.memory import peak_memory, reset_peak_memory
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.thresholds import tau_from
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Answer, Outcome, Question, Search

SEEDS = tuple(range(10))
FRESH = range(1000, 1010)  # never used by a search
FLOOR = 2 * len(SEEDS)  # score the prompt, confirm the result


@dataclass(frozen=True)
class Task:
    """A prompt file, ready to be searched as often as one likes."""

    prompts: tuple[str, ...]
    encoded: list[Prompt]
    paths: list[Ladder]
    tau: float


def open_demo(options: Options) -> tuple[Engine, Callable[[str], Task]]:
    """The demo's engine, and what makes a task of one of its prompt files; tau calibrated once."""
    checkpoint = recognize(CHECKPOINT)
    layers = checkpoint.select(options.layers)
    engine = open_engine(checkpoint, options)
    ordinary = read_prompts(DATA / "ordinary.txt").texts
    known = activation_statistics(engine.model, layers, ordinary)
    tau = tau_from([path[-1] for path in score_paths(engine, ordinary, SEEDS)[0]])

    def task(name: str) -> Task:
        prompts = read_prompts(DATA / name).texts
        encoded = engine.prompts(prompts)
        paths = ladders(engine.model, layers, (one.text for one in encoded), known)
        return Task(prompts, encoded, paths, tau)

    return engine, task


def run_task(
    engine: Engine, task: Task, procedure: str, asked: list[Question] | None = None
) -> list[Outcome]:
    """All prompts' searches by one procedure; `asked` collects every question if given."""
    kind = literal_search if procedure == "literal" else search

    def listened(one: Search) -> Search:
        question = next(one)
        while True:
            if asked is not None:
                asked.append(question)
            answer = yield question
            try:
                question = one.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    jobs = [
        (prompt, listened(kind(path, SEEDS, task.tau)))
        for prompt, path in zip(task.encoded, task.paths, strict=True)
    ]
    return engine.run(jobs, in_flight=1 if procedure == "literal" else None)


def sample_flops(engine: Engine) -> int:
    """Floating point operations of one denoiser sample, by torch's counter."""
    engine.batch_size, grown = 1, engine.batch_size
    # Fused attention on a CPU is not in the counter's tables; the plain form counts the same work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.probe(engine.prompts([""])[0], frozenset(), FRESH[:2])
    engine.batch_size = grown
    return int(counter.get_total_flops()) // 4  # probe takes two samples a seed


def measure(engines: dict[str, Engine], task: Task, repeats: int) -> dict[str, Any]:
    """The table of one prompt file: literal and search in turn, and their ratio."""
    flops = sample_flops(engines["search"])
    seconds: dict[str, list[float]] = {"literal": [], "search": []}
    outcomes: dict[str, list[Outcome]] = {}
    peak = dict.fromkeys(engines, 0)
    for _ in range(repeats):
        for name, engine in engines.items():
            reset_peak_memory(engine.model.device)
            started = time.perf_counter()
            outcomes[name] = run_task(engine, task, name)
            seconds[name].append(time.perf_counter() - started)
            peak[name] = max(peak[name], peak_memory(engine.model.device))
    result: dict[str, Any] = {}
    for name, found in outcomes.items():
        off = frozenset(union(*(outcome.neurons for outcome in found)))
        samples = sum(outcome.samples for outcome in found)
        fresh = [max(engines["search"].probe(prompt, off, FRESH).values()) for prompt in task.encoded]
        rates = [precision(p, o.neurons) for p, o in zip(task.prompts, found, strict=True)]
        known = [rate for rate in rates if rate is not None]
        result[name] = {
            "samples": samples,
            "flops": samples * flops,
            "seconds": round(statistics.median(seconds[name]), 2),
            "peak_memory_mb": round(peak[name] / 1e6),
            "samples_per_prompt": [outcome.samples for outcome in found],
            "neurons_per_prompt": [len(outcome.neurons) for outcome in found],
            "union": len(off),
            "status": [outcome.status for outcome in found],
            "precision": round(statistics.mean(known), 3) if known else None,
            "fresh_scores": fresh,
            "suppressed": [score <= task.tau for score in fresh],
            "one_minimal": engines["search"].run(
                list(zip(task.encoded, map(proves_minimal, found), strict=True))
            ),
        }
    literal, fast = result["literal"], result["search"]
    result["ratio"] = {
        key: round(literal[key] / fast[key], 2) for key in ("samples", "flops", "seconds")
    }
    result["samples_per_prompt"] = round(fast["samples"] / len(task.prompts), 1)
    result["public_code_samples"] = 2 * literal["samples"]
    return result


def proves_minimal(outcome: Outcome) -> Generator[Question, Answer, bool]:
    """Whether putting back any one neuron fails the criterion on some memorized seed."""
    yield Question(frozenset(), SEEDS)
    found = frozenset(outcome.neurons)
    for neuron in outcome.neurons:
        if len(found) > 1:  # nothing off never meets the criterion
            answer = yield Question(found - {neuron}, outcome.memorized_seeds)
            if max(answer.values()) <= outcome.threshold:
                return False
    return True


def main() -> None:
    """Print the tables, or with --json one object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each procedure")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    options = Options(device=given.device, precision=given.precision)
    engine, task_of = open_demo(options)
    literal = Engine(
        engine.model, timestep=engine.timestep, criterion=engine.criterion, batch_size=len(SEEDS)
    )
    engines = {"literal": literal, "search": engine}
    result: dict[str, Any] = {"floor_samples": FLOOR, "device": str(engine.model.device)}
    for key, name in (("planted", "memorized.txt"), ("distributed", "memorized-distributed.txt")):
        result[key] = measure(engines, task_of(name), given.repeats)
    result["stress"] = stress_table()
    if given.json:
        print(json.dumps(result))
        return
    for key in ("planted", "distributed"):
        print(key)
        print(format_table(_rows(result[key])))
        print()
    print(f"floor: {FLOOR} samples a prompt\n")
    print(format_table(result["stress"]))


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in ("literal", "search"):
        one = table[name]
        rows.append({
            "procedure": name,
            "samples": one["samples"],
            "a prompt": round(one["samples"] / len(one["samples_per_prompt"]), 1),
            "TFLOP": round(one["flops"] / 1e12, 2),
            "seconds": one["seconds"],
            "peak MB": one["peak_memory_mb"],
            "neurons": " ".join(map(str, one["neurons_per_prompt"])),
            "union": one["union"],
            "precision": one["precision"],
            "suppressed": f"{sum(one['suppressed'])}/{len(one['suppressed'])}",
            "1-minimal": all(one["one_minimal"]),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
