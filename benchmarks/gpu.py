"""What one card does: samples/s against its matrix peak, memory, gradients, the search beside them.

    python -m benchmarks.gpu --out DIR [--parts NAME ...] [--minutes 5] [--device auto] [--tiny]

Everything is generated where it runs: full-size denoisers of random weights, random prompts, memories
planted beside the model (`random_models`). Each part has its own share of the time and is written to
DIR/gpu.json and DIR/gpu.md after every measurement, so that what ends early loses nothing; parts that
an earlier run on the same card has finished are not run again. Exits 1 if a part failed.

- peak: matrix products of 8192 x 8192, what the card reaches at all.
- denoiser: passes by family, precision and batch size, with the memory that they take.
- backward: the attribution's gradient pass, with and without gradient checkpointing.
- search: detection and searches of planted memories; the time outside the denoiser's passes.
- tests: the tests of device paths.
- choices: memory format, attention kernels, cuDNN's search; error against fp32.
- prune: localize, write and check a full-size checkpoint with planted memories, end to end.
- demo: `nemo-prune demo` as a user runs it, on this device.
- compile: torch.compile of the denoiser, in a process of its own that may be ended.

`--tiny` runs all of it on models of a few channels in seconds, to see that nothing breaks.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_results import Results, Row, about
from benchmarks.random_models import Planted, config_of, plant, random_model, random_prompts
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.localize import prune as pruning
from nemo_prune.localize.localize import localize
from nemo_prune.model import hub
from nemo_prune.model.configs import complete_folder
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.devices import memory_format, pick_device, pick_dtype
from nemo_prune.options import Options, Silent, Writing
from nemo_prune.scoring.detect import detect
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.memory import peak_memory, reset_peak_memory
from nemo_prune.scoring.searching import finished_searches, run_searches
from nemo_prune.search.auto import Candidates, auto_search
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.protocol import Attribute

TIMESTEP, TAU = 961, 0.428
SEEDS = tuple(range(10))
BATCHES = {"sd1": (1, 4, 16, 64, 256), "sdxl": (1, 4, 16, 64)}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and until when (`time.monotonic`)."""

    device: torch.device
    tiny: bool
    deadline: float

    @property
    def left(self) -> float:
        """Seconds that the part has left."""
        return self.deadline - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raise TimeoutError if less time than that is left."""
        if self.left < seconds:
            raise TimeoutError

    @property
    def precision(self) -> str:
        """The product's own choice on this device."""
        dtype = pick_dtype(self.device, "auto")
        return next(name for name, one in DTYPES.items() if one == dtype)

    def model(self, family: str, precision: str) -> LoadedModel:
        return random_model(family, self.device, DTYPES[precision], tiny=self.tiny)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], warm: int = 2, repeats: int = 5) -> float:
        """Median seconds of `work`, each run to its end; of fewer runs near the deadline."""
        for _ in range(warm):
            work()
        self.sync()
        taken: list[float] = []
        while not taken or (len(taken) < repeats and self.left > 2 * max(taken)):
            began = time.perf_counter()
            work()
            self.sync()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


# ------------------------------------------------------------------------------------------- parts


def peak(at: Setting) -> Iterator[Row]:
    """The largest rate of matrix products, per precision."""
    side = 512 if at.tiny else 8192
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(side, side, device=at.device).to(dtype) for _ in range(2))
        seconds = at.seconds(partial(torch.matmul, a, b), warm=3, repeats=10)
        yield {"precision": name, "side": side, "tflops": round(2 * side**3 / seconds / 1e12, 1)}


def sample_tflop(family: str, *, tiny: bool = False) -> float:
    """TFLOP of one denoiser pass of one latent (a multiply-add is two), counted on no data."""
    model = random_model(family, torch.device("meta"), torch.float32, tiny=tiny)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            passing(model, 1)()
    return counter.get_total_flops() / 1e12


def passing(model: LoadedModel, batch: int) -> Callable[[], torch.Tensor]:
    """A pass of so many latents with the masks of as many samples, as the engine makes them."""
    prompts = random_prompts(model, batch)
    text = torch.stack([prompt.text for prompt in prompts])
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    added = torch.stack(pooled) if pooled else None
    latents = torch.randn(batch, *model.latent_shape, device=model.device, dtype=model.dtype)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model.predict_noise(latents, TIMESTEP, text, added)

    return run


def denoiser(at: Setting) -> Iterator[Row]:
    """Samples/s and memory by family, precision and batch size; TFLOP/s for the roofline."""
    for family, batches in BATCHES.items():
        tflop = sample_tflop(family, tiny=at.tiny)
        for precision in ("fp16", "bf16") if at.device.type == "cuda" else ("fp32",):
            model = at.model(family, precision)
            weights = sum(p.numel() * p.element_size() for p in model.unet.parameters())
            for batch in batches[:2] if at.tiny else batches:
                at.need(1)
                row: Row = {"family": family, "precision": precision, "batch": batch}
                try:
                    reset_peak_memory(at.device)
                    seconds = at.seconds(passing(model, batch), repeats=5 if batch < 64 else 3)
                except torch.OutOfMemoryError:
                    yield row | {"samples_per_s": None, "note": "out of memory"}
                    break
                yield row | {
                    "samples_per_s": round(batch / seconds, 2),
                    "ms_per_sample": round(1000 * seconds / batch, 3),
                    "tflop_per_sample": round(tflop, 3),
                    "tflops": round(tflop * batch / seconds, 1),
                    "peak_gb": round(peak_memory(at.device) / 1e9, 2),
                    "weights_gb": round(weights / 1e9, 2),
                }
            del model
            at.clear()


def backward(at: Setting) -> Iterator[Row]:
    """One attribution of one prompt at the product's points, per family and seeds at once."""
    for family in BATCHES:
        model = at.model(family, at.precision)
        engine = Engine(model, timestep=TIMESTEP, batch_size=3)
        (prompt,) = random_prompts(model, 1)
        for seeds in (1, 4, 16):
            forward = at.seconds(passing(model, seeds), repeats=3)
            for checkpointed in (True, False):
                at.need(2)
                layers = [name for name in model.value_layers if not name.startswith("up_blocks")]
                found = engine.evaluate([Sample(prompt, frozenset(), s) for s in range(max(2, seeds))])
                job: Job = Job(prompt, iter(()), dict(enumerate(found)), layers=layers)  # type: ignore[arg-type]
                row: Row = {"family": family, "precision": at.precision, "seeds": seeds}
                row["checkpointing"] = checkpointed
                wanted = Attribute(tuple(range(seeds)))
                try:
                    engine.batch_size, engine._tight = 3 * seeds, {False} if checkpointed else set()
                    engine.attribution(job, wanted)
                    at.sync()
                    reset_peak_memory(at.device)
                    seconds = at.seconds(partial(engine.attribution, job, wanted), 0, 3)
                except torch.OutOfMemoryError:
                    yield row | {"note": "out of memory"}
                    continue
                if engine._tight and not checkpointed:
                    row["note"] = "did not fit: with checkpointing"
                points = len(wanted.points)
                yield row | {
                    "seconds": round(seconds, 3),
                    "forward_passes": round(seconds / points / forward, 2),
                    "peak_gb": round(peak_memory(at.device) / 1e9, 2),
                    "finite": not engine._overflowed,
                }
        del model, engine
        at.clear()


class Watch:
    """Seconds inside the denoiser: its forward passes by the device's clock, and whole attributions."""

    def __init__(self, at: Setting, engine: Engine) -> None:
        self.at, self.engine = at, engine
        self.spans: list[tuple[Any, Any]] = []
        self.gradients, self._inside = 0.0, False
        unet, attribute = engine.model.unet, engine.attributions
        unet.register_forward_pre_hook(lambda *_: self._begin())
        unet.register_forward_hook(lambda *_: self._end())

        def attributed(asked: Any) -> Any:
            at.sync()
            began, self._inside = time.perf_counter(), True
            try:
                return attribute(asked)
            finally:
                at.sync()
                self._inside = False
                self.gradients += time.perf_counter() - began

        engine.attributions = attributed  # type: ignore[method-assign]

    def _now(self) -> Any:
        if self.at.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _begin(self) -> None:
        if not self._inside:
            self.spans.append((self._now(), None))

    def _end(self) -> None:
        if not self._inside:
            self.spans[-1] = (self.spans[-1][0], self._now())

    def measured(self, work: Callable[[], object]) -> Row:
        """Run `work`; where its time went."""
        self.spans, self.gradients = [], 0.0
        before, batches = self.engine.cost.samples, self.engine.cost.batches
        self.at.sync()
        began = time.perf_counter()
        work()
        self.at.sync()
        total = time.perf_counter() - began
        inside = sum(
            one.elapsed_time(other) / 1000 if hasattr(one, "elapsed_time") else other - one
            for one, other in self.spans
        )
        outside = total - inside - self.gradients
        samples = self.engine.cost.samples - before
        return {
            "seconds": round(total, 2),
            "denoiser_s": round(inside, 2),
            "gradient_s": round(self.gradients, 2),
            "outside_s": round(outside, 3),
            "outside_percent": round(100 * outside / total, 1),
            "samples": samples,
            "samples_per_s": round(samples / total, 1),
            "batches": self.engine.cost.batches - batches,
            "outside_ms_per_sample": round(1000 * outside / max(1, samples), 3),
        }


def search(at: Setting) -> Iterator[Row]:
    """Detection and searches of many prompts at once, and what the time outside the denoiser went to."""
    family = "sd1"
    model = at.model(family, at.precision)
    prompts = random_prompts(model, 5 if at.tiny else 257)  # the last one stands for the empty prompt
    engine = Engine(model, timestep=TIMESTEP, published=not at.tiny)
    engine.prompts = lambda texts, tokens=None: [  # type: ignore[method-assign] # noqa: ARG005
        prompts[int(text or -1)] for text in texts
    ]
    passing(model, 2)()  # what is loaded lazily is no overhead of the search
    watch = Watch(at, engine)
    engine.evaluate([Sample(prompts[0], frozenset(), seed) for seed in range(2 if at.tiny else 600)])
    layers = [name for name in model.value_layers if not name.startswith("up_blocks")]
    rows = {name: model.value_layers[name].out_features for name in layers}
    rng = random.Random(0)
    sizes = [1, 3, 8, 20]
    memories = [plant(rows, sizes[i % len(sizes)], TAU, rng) for i in range(len(prompts))]
    order = tuple(memories[0].attribution)
    candidates = Candidates(order, dict.fromkeys(order, 1.0))

    def jobs(kind: str, count: int) -> list[Job]:
        made = []
        for prompt, memory in list(zip(prompts, memories, strict=True))[:count]:
            inner = (
                auto_search(memory.ladder, candidates, SEEDS, TAU)
                if kind == "auto"
                else gradient_free_search(memory.ladder, SEEDS, TAU)
            )
            made.append(Job(prompt, memory.answers(inner), layers=layers))
        return made

    kinds: list[tuple[str, int]] = (
        [("detect", 4), ("auto", 2), ("gradient-free", 2)]
        if at.tiny
        else [("detect", 128), ("auto", 64), ("gradient-free", 32)]
    )
    each = 0.0
    for kind, count in kinds:
        at.need(each)
        began = time.monotonic()
        found: list[Any] = []

        def work(kind: str = kind, count: int = count, found: list[Any] = found) -> None:
            if kind == "detect":
                detect(engine, [str(i) for i in range(count)], SEEDS, 0.5, early=False)
            else:
                found += run_searches(engine, jobs(kind, count))

        profile = cProfile.Profile()
        row = watch.measured(work)
        each = time.monotonic() - began
        right = [set(one.neurons) == memories[i].needed for i, one in enumerate(found)]
        yield {"work": kind, "prompts": count, **row, "found": f"{sum(right)}/{len(found)}"}
        if kind != "gradient-free":
            small = max(1, count // 8)
            profile.runcall(work, kind, small, [])
            yield {"work": f"{kind}, profiled", "prompts": small, "profile": hottest(profile)}


def hottest(profile: cProfile.Profile, count: int = 14) -> list[str]:
    """The functions of this package that took most, with all they call."""
    entries = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    named = [
        (cumulative, own, calls, f"{Path(file).name}:{line} {name}")
        for (file, line, name), (_, calls, own, cumulative, _) in entries
        if "nemo_prune" in file or own > 0.02
    ]
    return [
        f"{cumulative:.3f} s ({own:.3f} own, {calls} calls) {where}"
        for cumulative, own, calls, where in sorted(named, reverse=True)[:count]
    ]


def choices(at: Setting) -> Iterator[Row]:
    """Settings of the denoiser, each beside the product's own: time, and error against fp32."""
    batches = (2,) if at.tiny else (4, 64)
    exact = at.model("sd1", "fp32")
    torch.manual_seed(1)
    known = {batch: passing(exact, batch)().float() for batch in batches if batch <= 4}
    del exact
    at.clear()
    model = at.model("sd1", at.precision)
    layout = memory_format(at.device)
    plain = layout == torch.contiguous_format
    other = torch.channels_last if plain else torch.contiguous_format
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    kernels = {
        "flash attention": [flash],
        "efficient attention": [SDPBackend.EFFICIENT_ATTENTION],
        "cuDNN attention where it can": [cudnn, flash],
        "plain attention": [SDPBackend.MATH],
    }
    plans: list[tuple[str, torch.memory_format, Callable[[], Any]]] = [
        ("as the product does", layout, nullcontext),
        ("channels-last weights" if plain else "contiguous weights", other, nullcontext),
        ("cuDNN benchmark", layout, _cudnn_benchmark),
        *(
            (name, layout, partial(sdpa_kernel, kernel, set_priority=True))
            for name, kernel in kernels.items()
        ),
    ]
    for batch in batches:
        first = None
        for name, weights, context in plans:
            at.need(1)
            model.unet.to(memory_format=weights)
            torch.manual_seed(1)
            run = passing(model, batch)
            row: Row = {"batch": batch, "choice": name}
            try:
                with context():
                    output = run().float()
                    reset_peak_memory(at.device)
                    seconds = at.seconds(run, repeats=7)
            except RuntimeError as error:  # no such kernel here, or out of memory
                yield row | {"note": str(error).splitlines()[0][:80]}
                continue
            first = first or seconds
            if batch in known:
                row["error"] = float(f"{(output - known[batch]).norm() / known[batch].norm():.2g}")
            yield row | {
                "ms_per_sample": round(1000 * seconds / batch, 3),
                "time_ratio": round(seconds / first, 3),
                "peak_gb": round(peak_memory(at.device) / 1e9, 2),
            }
    model.unet.to(memory_format=layout)


def _cudnn_benchmark() -> Any:
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=True, deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )  # fmt: skip


class Stages(Silent):
    """`Progress` that keeps how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self._name, self._began = "", 0.0

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:  # noqa: ARG002
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = round(self.seconds.get(self._name, 0.0) + now - self._began, 2)
        self._name, self._began = name, now

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_checkpoint(folder: Path, at: Setting) -> Path:
    """A whole diffusers folder of Stable Diffusion 1 with random weights, and no VAE."""
    parts = ("unet", "text_encoder")
    configs = {part: config_of("sd1", part, tiny=at.tiny) for part in parts}
    if at.tiny:
        configs["vae"] = config_of("sd1", "vae")
    complete_folder("sd1", configs, folder)
    torch.manual_seed(0)
    dtype = DTYPES[at.precision]
    with torch.device(at.device):
        unet = hub.UNet2DConditionModel.from_config(configs["unet"])
        text = hub.CLIPTextModel(hub.CLIPTextConfig.from_dict(configs["text_encoder"]))
    for part, model in (("unet", unet), ("text_encoder", text)):
        model.to(dtype).save_pretrained(folder / part)
    return folder


def prune(at: Setting) -> Iterator[Row]:
    """Localize, write and check a full-size checkpoint of a few planted memories."""
    with tempfile.TemporaryDirectory() as temporary, hub.quiet():
        began = time.perf_counter()
        folder = write_checkpoint(Path(temporary) / "model", at)
        checkpoint = open_checkpoint(folder)
        yield {"step": "checkpoint made", "seconds": round(time.perf_counter() - began, 2)}
        texts = [f"a planted memory, number {i}" for i in range(2 if at.tiny else 8)]
        options = Options(
            device=at.device.type, cache=False, tau=TAU, gate=0.5, batch_size=None,
            seeds=4 if at.tiny else 10,
        )  # fmt: skip
        layers = {layer.name: layer.rows for layer in checkpoint.select(options.layers)}
        rng = random.Random(0)
        memories = [plant(layers, 3 + i, TAU, rng) for i in range(len(texts))]
        stages, planted = Stages(), _planted(finished_searches, memories)
        at.clear()
        reset_peak_memory(at.device)
        with patch("nemo_prune.localize.localize.finished_searches", planted):
            found = localize(checkpoint, texts, options, stages)
        yield {"step": "localized", "seconds": round(time.perf_counter() - began, 2), **found.cost}
        stages.stage("writing the checkpoint", 1, "file")
        written = pruning.write(found, Writing(output=Path(temporary) / "pruned"))
        checked = pruning.check(found, written.path, texts, stages)
        stages.stage("", None, "")
        right = [set(o.neurons) == m.needed for o, m in zip(found.outcomes, memories, strict=True)]
        yield {
            "step": "written and checked",
            "seconds": round(time.perf_counter() - began, 2),
            "peak_gb": round(peak_memory(at.device) / 1e9, 2),
            "found": f"{sum(right)}/{len(right)}",
            "neurons": len(found.manifest.neurons),
            "statuses": [str(record.status) for record in checked.manifest.prompts],
            "stages": stages.seconds,
            "notes": stages.notes,
        }


def _planted(run: Callable[..., Any], memories: Sequence[Planted]) -> Callable[..., Any]:
    """`finished_searches` whose jobs' searches hear of planted memories; of as many jobs only."""

    def planted(engine: Engine, jobs: Sequence[Job], **options: Any) -> Any:
        if len(jobs) == len(memories):
            for job, memory in zip(jobs, memories, strict=True):
                job.search = memory.answers(job.search)
        return run(engine, jobs, **options)

    return planted


def demo(at: Setting) -> Iterator[Row]:
    """The demo, as a user runs it."""
    if at.tiny:
        yield {"note": "not in --tiny"}
        return
    with tempfile.TemporaryDirectory() as temporary:
        done, seconds = _child(
            at, "-c", "from nemo_prune.cli.main import main; main()",
            "demo", "--folder", f"{temporary}/demo", "--json",
        )  # fmt: skip
        row: Row = {"exit": done.returncode, "seconds": seconds}
        try:
            told = json.loads(done.stdout)
            row["statuses"] = [one["status"] for one in told["prompts"]]
            row["cost"] = told.get("cost")
        except (ValueError, KeyError, TypeError):
            row["printed"] = done.stdout[-1000:]
        if done.returncode:
            row["stderr"] = done.stderr[-3000:]
        yield row


def tests(at: Setting) -> Iterator[Row]:
    """The tests that use a GPU where there is one; if they fail, again with warnings allowed."""
    where = "test_loading and device" if at.tiny else "cuda or (test_loading and device)"
    base = ["-m", "pytest", "-p", "xdist.plugin", "-n", "0", "-p", "no:cacheprovider", "-rfE"]
    base += ["--tb=short", "-k", where, "tests/model/test_loading.py"]
    base += [] if at.tiny else ["tests/scoring/test_device_paths.py"]
    for name, extra in (("as in CI", []), ("warnings allowed", ["-o", "filterwarnings=default"])):
        done, seconds = _child(at, *base, *extra, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        lines = done.stdout.strip().splitlines()
        yield {
            "tests": name,
            "exit": done.returncode,
            "seconds": seconds,
            "result": lines[-1] if lines else done.stderr[-500:],
            **({"output": (done.stdout + done.stderr)[-4000:]} if done.returncode else {}),
        }
        if done.returncode == 0:
            return


def compiled(at: Setting) -> Iterator[Row]:
    """torch.compile of the denoiser beside the plain one, in a process that is ended in time."""
    done, seconds = _child(
        at, "-m", "benchmarks.gpu", "--child", "--device", at.device.type, *(["--tiny"] * at.tiny)
    )
    try:
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                yield json.loads(line)
    except ValueError:
        yield {"printed": done.stdout[-1000:]}
    if done.returncode:
        yield {"exit": done.returncode, "seconds": seconds, "stderr": done.stderr[-1500:]}


def compile_here(at: Setting) -> None:
    """The child of `compiled`: one line of JSON for each mode."""
    model = at.model("sd1", at.precision)
    batch = 2 if at.tiny else 64
    torch.manual_seed(1)
    run = passing(model, batch)
    plain, output = at.seconds(run), run().float()
    unet = model.unet
    began = time.perf_counter()
    object.__setattr__(model, "unet", torch.compile(unet, backend="eager" if at.tiny else "inductor"))
    run()
    at.sync()
    once = time.perf_counter() - began
    fast = at.seconds(run)
    print(
        json.dumps({
            "choice": "torch.compile",
            "batch": batch,
            "ms_per_sample": round(1000 * fast / batch, 3),
            "time_ratio": round(fast / plain, 3),
            "compile_seconds": round(once, 1),
            "samples_to_pay": round(once / max(1e-9, (plain - fast) / batch)) if fast < plain else None,
            "difference": float(f"{(run().float() - output).norm() / output.norm():.2g}"),
        }),
        flush=True,
    )  # fmt: skip


def _child(
    at: Setting, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run this Python on `arguments` from the repository's root until the deadline."""
    began = time.monotonic()
    command = [sys.executable, *arguments]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as cache:
        extra = {"PYTHONPATH": paths, "NEMO_PRUNE_CACHE": cache, **environment}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True,
                timeout=max(5.0, at.left),
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            told = [
                one.decode(errors="replace") if isinstance(one, bytes) else one or ""
                for one in (late.stdout, late.stderr)
            ]
            done = subprocess.CompletedProcess(command, 124, told[0], told[1] + "\nout of time")
    return done, round(time.monotonic() - began, 1)


PARTS: dict[str, tuple[Callable[[Setting], Iterator[Row]], float]] = {
    "peak": (peak, 10),
    "denoiser": (denoiser, 75),
    "backward": (backward, 25),
    "search": (search, 60),
    "tests": (tests, 60),
    "choices": (choices, 25),
    "prune": (prune, 60),
    "demo": (demo, 75),
    "compile": (compiled, 120),
}
"""Each part, and the seconds that it may take."""


def measure(
    folder: Path, names: Sequence[str], device: torch.device, minutes: float, *, tiny: bool = False
) -> bool:
    """Run the parts, in order, until the minutes are over; whether none of them failed."""
    folder.mkdir(parents=True, exist_ok=True)
    results, end = Results(folder, about(device, tiny)), time.monotonic() + 60 * minutes
    results.save()
    for name in names:
        work, budget = PARTS[name]
        began = time.monotonic()
        known = results.parts.get(name, {}).get("finished")
        if known or end - began < min(5.0, budget):
            print(f"{name}: {'known' if known else 'no time left'}", flush=True)
            continue
        part: Row = {"finished": False, "seconds": 0.0, "rows": []}
        results.parts[name] = part
        at = Setting(device, tiny, min(end, began + budget))
        try:
            for row in work(at):
                part["rows"].append(row)
                part["seconds"] = round(time.monotonic() - began, 1)
                results.roofline()
                results.save()
                print(f"{name}: {json.dumps(row)[:600]}", flush=True)
            part["finished"] = True
        except TimeoutError:
            print(f"{name}: its time is over", flush=True)
        except Exception:  # the other parts are worth their figures all the same
            part["error"] = traceback.format_exc()
            print(f"{name}: {part['error']}", flush=True)
        part["seconds"] = round(time.monotonic() - began, 1)
        results.save()
        at.clear()
    return not any(
        "error" in part or any(row.get("exit") for row in part["rows"][-1:])
        for part in results.parts.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of gpu.json and gpu.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parts together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="models of a few channels")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = pick_device(given.device)
    if given.child:
        compile_here(Setting(device, given.tiny, time.monotonic() + 600))
        return
    if given.out is None:
        parser.error("--out is needed")
    parts = [name for name in PARTS if name in given.parts]
    sys.exit(0 if measure(given.out, parts, device, given.minutes, tiny=given.tiny) else 1)


if __name__ == "__main__":
    main()
