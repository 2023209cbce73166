"""What the searches cost on the demo checkpoint, beside the procedure as the paper states it.

    python -m benchmarks.search [--json] [--repeats 3] [--device auto] [--precision auto]
        [--stages planted distributed natural stress] [--natural FOLDER ...]

All see the same loaded model, ladders and tau; they run in turn in one process: `literal` with 10
seeds an evaluation, one candidate at a time, batches of 10; `gradient-free`; `search`, the default
(`auto`). Samples, in which a backward pass counts as two more, and FLOPs are counted and exact;
seconds are medians of `--repeats` runs and mean something only as a ratio. The paper's public code
takes two passes an evaluation; `public_code_samples` is the literal procedure's count with that.

`natural` are checkpoints that memorized by duplication alone (`benchmarks.natural`, which trains
them and names their folders); see `benchmarks.natural_search`. The stress table (`benchmarks.stress`)
follows: random oracles at growing sizes, the paper's too.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import natural_search
from benchmarks.stress import auto_table, format_table, stress_table
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import read_prompts
from nemo_prune.options import Options
from nemo_prune.report.demo import CHECKPOINT, DATA, precision
from nemo_prune.scoring.activations import activation_statistics, harms, ladders
from nemo_prune.scoring.detect import score_paths
from nemo_prune.scoring.engine import Engine, Job, Prompt
from nemo_prune.scoring.memory import peak_memory, reset_peak_memory
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.searching import run_searches
from nemo_prune.scoring.thresholds import tau_from
from nemo_prune.search.auto import Candidates, auto_search
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Attribute, Outcome, Question, Search, Steps

SEEDS = tuple(range(10))
FRESH = range(1000, 1010)  # never used by a search
FLOOR = 2 * len(SEEDS)  # score the prompt, confirm the result
PROCEDURES = ("literal", "gradient-free", "search")
STAGES = ("planted", "distributed", "natural", "stress")
FILES = {"planted": "memorized.txt", "distributed": "memorized-distributed.txt"}


@dataclass(frozen=True)
class Task:
    """A prompt file, ready to be searched as often as one likes."""

    prompts: tuple[str, ...]
    encoded: list[Prompt]
    paths: list[Ladder]
    tau: float
    candidates: Candidates

    def begin(self, ladder: Ladder, procedure: str) -> Search:
        """A search of the prompt of this ladder."""
        if procedure == "literal":
            return literal_search(ladder, SEEDS, self.tau)
        if procedure == "gradient-free":
            return gradient_free_search(ladder, SEEDS, self.tau)
        return auto_search(ladder, self.candidates, SEEDS, self.tau)


def open_demo(
    options: Options, most: int | None = None, ordinary: int | None = None
) -> tuple[Engine, Callable[[str], Task]]:
    """The demo's engine, and what makes a task of one of its prompt files; tau calibrated once.

    most, ordinary: take only so many prompts of a file, and so many ordinary ones.
    """
    checkpoint = recognize(CHECKPOINT)
    layers = checkpoint.select(options.layers)
    engine = open_engine(checkpoint, options)
    captions = read_prompts(DATA / "ordinary.txt").texts[:ordinary]
    known = activation_statistics(engine.model, layers, captions)
    tau = tau_from([path[-1] for path in score_paths(engine, captions, SEEDS)[0]])
    order = tuple(Neuron(layer.name, row) for layer in layers for row in range(layer.rows))
    candidates = Candidates(order, harms(engine.model, layers, known))

    def task(name: str) -> Task:
        prompts = read_prompts(DATA / name).texts[:most]
        encoded = engine.prompts(prompts)
        paths = ladders(engine.model, layers, (one.text for one in encoded), known)
        return Task(prompts, encoded, paths, tau, candidates)

    return engine, task


def run_task(
    engine: Engine, task: Task, procedure: str, asked: list[Question | Attribute] | None = None
) -> list[Outcome]:
    """All prompts' searches by one procedure, with everything that they cost as their samples.

    asked: collects every question if given.
    """

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

    layers = list(dict.fromkeys(neuron.layer for neuron in task.candidates.order))
    jobs = [
        Job(prompt, listened(task.begin(path, procedure)), layers=layers)
        for prompt, path in zip(task.encoded, task.paths, strict=True)
    ]
    found: list[Outcome] = run_searches(engine, jobs, in_flight=1 if procedure == "literal" else None)
    return [replace(outcome, samples=job.samples) for outcome, job in zip(found, jobs, strict=True)]


def sample_flops(engine: Engine) -> int:
    """Floating point operations of one denoiser sample, by torch's counter."""
    engine.batch_size, grown = 1, engine.batch_size
    # Fused attention on a CPU is not in the counter's tables; the plain form counts the same work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.probe(engine.prompts([""])[0], frozenset(), FRESH[:2])
    engine.batch_size = grown
    return int(counter.get_total_flops()) // 4  # probe takes two samples a seed


def measure(engines: dict[str, Engine], task: Task, repeats: int) -> dict[str, Any]:
    """The table of one prompt file: all procedures in turn, and the literal's ratio to the default."""
    flops = sample_flops(engines["search"])
    seconds: dict[str, list[float]] = {name: [] for name in engines}
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
        fresh = [max(engines["search"].probe(one, off, FRESH)[0].values()) for one in task.encoded]
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
            "order": [outcome.order for outcome in found],
            "one_minimal": run_searches(
                engines["search"],
                [Job(p, proves_minimal(o)) for p, o in zip(task.encoded, found, strict=True)],
            ),
        }
    literal, fast = result["literal"], result["search"]
    result["ratio"] = {
        key: round(literal[key] / fast[key], 2) for key in ("samples", "flops", "seconds")
    }
    result["samples_per_prompt"] = round(fast["samples"] / len(task.prompts), 1)
    result["public_code_samples"] = 2 * literal["samples"]
    return result


def proves_minimal(outcome: Outcome) -> Steps[bool]:
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
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    natural_search.add_arguments(parser)
    given = parser.parse_args()
    if "natural" in given.stages and not given.natural:
        given.stages = [stage for stage in given.stages if stage != "natural"]
        print("natural: left out, no --natural FOLDER", file=sys.stderr)
    options = Options(device=given.device, precision=given.precision)
    result: dict[str, Any] = {"floor_samples": FLOOR}
    if planted := [stage for stage in given.stages if stage in FILES]:
        engine, task_of = open_demo(options)
        result["device"] = str(engine.model.device)
        literal = Engine(
            engine.model, timestep=engine.timestep, criterion=engine.criterion, batch_size=len(SEEDS)
        )
        engines = dict.fromkeys(PROCEDURES, engine) | {"literal": literal}
        for key in planted:
            result[key] = measure(engines, task_of(FILES[key]), given.repeats)
    if "natural" in given.stages:
        result["natural"] = natural_search.measure(given, options, sample_flops)
    if "stress" in given.stages:
        result["stress"], result["stress_auto"] = stress_table(), auto_table()
    if given.json:
        print(json.dumps(result))
        return
    for key in planted:
        print(key)
        print(format_table(_rows(result[key])))
        print()
    print(f"floor: {FLOOR} samples a prompt\n")
    for name, found in result.get("natural", {}).items():
        print(natural_search.rendered(name, found), end="\n\n")
    for key in ("stress", "stress_auto"):
        if key in result:
            print(format_table(result[key]), end="\n\n")


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in PROCEDURES:
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
