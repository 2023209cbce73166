"""Which engine settings pay on this machine, measured on the demo checkpoint.

    python -m benchmarks.settings [--json] [--compile] [--small]

Precision (neurons, scores and time against fp32), batch size (the neurons must not depend on it),
memory format, torch.compile (its compile time included) and what caching the denoiser's part
before the first value layer that a question touches would save in FLOPs. Times mean something only
as ratios: each pair runs in turn in one process. --small takes one prompt and 30 ordinary captions,
to see in a minute or two that everything runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.search import SEEDS, Task, open_demo, run_task
from nemo_prune.model.devices import memory_format
from nemo_prune.options import Options
from nemo_prune.report.demo import DATA
from nemo_prune.scoring.engine import Engine
from nemo_prune.search.protocol import Attribute, Outcome, Question

FILES = tuple(name for name in ("memorized.txt", "memorized-distributed.txt") if (DATA / name).exists())


def in_turn(*jobs: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each job, all run in turn `repeats` times after one round unmeasured."""
    taken: list[list[float]] = [[] for _ in jobs]
    for round_ in range(repeats + 1):
        for place, job in enumerate(jobs):
            started = time.perf_counter()
            job()
            if round_:
                taken[place].append(time.perf_counter() - started)
    return [statistics.median(one) for one in taken]


def _pass(engine: Engine, task: Task) -> Callable[[], object]:
    """One scoring of every prompt: full batches and nothing else."""
    return lambda: engine.score_prompts(task.encoded, SEEDS, lambda _count: None)


def _neurons(outcomes: Sequence[Outcome]) -> list[list[str]]:
    return [[f"{n.layer}:{n.row}" for n in outcome.neurons] for outcome in outcomes]


def precisions(
    names: Sequence[str],
    files: Sequence[str],
    repeats: int,
    most: int | None = None,
    ordinary: int | None = None,
) -> dict[str, Any]:
    """Each precision's own tau, searches and scores beside fp32's."""
    engines, found, scores, tasks = {}, {}, {}, {}
    for name in names:
        engine, task_of = open_demo(Options(precision=name), most, ordinary)
        engines[name], tasks[name] = engine, [task_of(file) for file in files]
        found[name] = [_neurons(run_task(engine, task, "search")) for task in tasks[name]]
        scores[name] = [
            max(one.values())
            for task in tasks[name]
            for one in engine.score_prompts(task.encoded, SEEDS, lambda _count: None)
        ]
    seconds = in_turn(*(_pass(engines[n], tasks[n][0]) for n in names), repeats=repeats)
    first = names[0]
    return {
        name: {
            "tau": tasks[name][0].tau,
            "same_neurons": found[name] == found[first],
            "largest_score_difference": max(
                abs(a - b) for a, b in zip(scores[name], scores[first], strict=True)
            ),
            "seconds_ratio": round(taken / seconds[0], 2),
        }
        for name, taken in zip(names, seconds, strict=True)
    }


def batch_sizes(engine: Engine, task: Task) -> dict[str, bool]:
    """Whether batches of 1, 7 and auto find the same neurons and scores."""
    found = []
    for size in (1, 7, None):
        other = Engine(engine.model, timestep=engine.timestep, batch_size=size)
        outcomes = run_task(other, task, "search")
        found.append((_neurons(outcomes), [o.scores_after for o in outcomes]))
    return {
        "same_neurons": all(one[0] == found[0][0] for one in found),
        "same_scores": all(one[1] == found[0][1] for one in found),
    }


def layouts(engine: Engine, task: Task, repeats: int) -> float:
    """Seconds with channels-last weights over seconds with contiguous ones."""
    unet = engine.model.unet

    def job(layout: torch.memory_format) -> Callable[[], object]:
        def run() -> None:
            unet.to(memory_format=layout)
            _pass(engine, task)()

        return run

    last, plain = in_turn(job(torch.channels_last), job(torch.contiguous_format), repeats=repeats)
    unet.to(memory_format=memory_format(engine.model.device))
    return round(last / plain, 2)


def compiled(engine: Engine, task: Task, repeats: int) -> dict[str, float]:
    """What torch.compile costs once, and saves in each pass."""
    model = replace(engine.model, unet=torch.compile(engine.model.unet))
    fast = Engine(model, timestep=engine.timestep, batch_size=engine.batch_size)
    started = time.perf_counter()
    _pass(fast, task)()
    once = time.perf_counter() - started
    slow_time, fast_time = in_turn(_pass(engine, task), _pass(fast, task), repeats=repeats)
    saved = (slow_time - fast_time) / (len(task.prompts) * len(SEEDS))
    return {
        "seconds_ratio": round(fast_time / slow_time, 2),
        "compile_seconds": round(once - fast_time, 1),
        "samples_to_pay": round((once - fast_time) / saved) if saved > 0 else float("inf"),
    }


def prefix(engine: Engine, task: Task) -> dict[str, float]:
    """The part of all FLOPs that lies before the first value layer that a question touches; at most."""
    layers = list(engine.model.value_layers)
    before: dict[str, int] = {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        handles = [
            layer.register_forward_pre_hook(
                lambda _module, _inputs, name=name: before.update({name: counter.get_total_flops()})
            )
            for name, layer in engine.model.value_layers.items()
        ]
        latents = engine.noise(0)[None]
        engine.model.predict_noise(latents, engine.timestep, task.encoded[0].text[None])
        total = counter.get_total_flops()
    for handle in handles:
        handle.remove()
    asked: list[Question | Attribute] = []
    run_task(engine, task, "gradient-free", asked)
    samples = saved = 0
    for question in asked:
        samples += len(question.seeds)
        touched = {neuron.layer for neuron in question.off}
        if touched:  # the first question has no earlier pass to reuse
            first = next(name for name in layers if name in touched)
            saved += before[first] * len(question.seeds)
    searched = [before[name] for name in layers if not name.startswith("up")]
    return {
        "saved": round(saved / (samples * total), 3),
        "at_most": round(max(searched) / total, 3),  # with neurons of the last layer alone
    }


def main() -> None:
    """Print one JSON object, on several lines unless --json is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.settings", description=__doc__)
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (minutes)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a minute instead of many")
    given = parser.parse_args()
    files, most, ordinary = (FILES[:1], 1, 30) if given.small else (FILES, None, None)
    engine, task_of = open_demo(Options(), most, ordinary)
    tasks = [task_of(name) for name in files]
    gpu = torch.cuda.is_available()
    names = ["fp32"]
    if gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # else emulated, many times slower
        names.append("bf16")
    if gpu:
        names.append("fp16")
    result: dict[str, Any] = {
        "device": str(engine.model.device),
        "precision": precisions(names, files, given.repeats, most, ordinary),
        "batch_size": {f: batch_sizes(engine, t) for f, t in zip(files, tasks, strict=True)},
        "channels_last_ratio": layouts(engine, tasks[0], given.repeats),
        "prefix": {f: prefix(engine, t) for f, t in zip(files, tasks, strict=True)},
    }
    if given.compile:
        result["compile"] = compiled(engine, tasks[0], given.repeats)
    print(json.dumps(result, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
