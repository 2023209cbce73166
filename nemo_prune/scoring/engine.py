"""The engine: holds the denoiser and evaluates samples of it, in full batches.

A sample is one forward pass of one latent: no guidance, one timestep, the starting noise x_T itself as
input (the paper's setting), with a mask per sample on each value layer's output. Running out of memory
halves the batch; what overflows in half precision is evaluated again in fp32. `searching` answers the
questions of searches with it.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError, option, rendered
from nemo_prune.model.denoiser import LoadedModel, Tokens
from nemo_prune.options import Criterion
from nemo_prune.scoring.attribution import Masking, attribute, soft_maxima
from nemo_prune.scoring.criterion import (
    best_pairs,
    compared_with,
    scores_against,
)
from nemo_prune.scoring.masks import masked_layers, masks_of
from nemo_prune.scoring.sharing import Kept, Work, Workers, engine_here, kept, share
from nemo_prune.scoring.similarity import noise_difference
from nemo_prune.scoring.trajectory import Reference, Schedule, clean_latents, denoise, scaled
from nemo_prune.search.protocol import Attribute, Attribution, Steps

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")
PROMPTS_AT_ONCE = 256
"""Prompts whose embeddings are held at once, however long a list is."""
_LARGE = 10**8  # parameters: Stable Diffusion 1 has 860 million, the demo 6
_GRADIENTS = 16  # samples of a backward pass on a GPU: fewer leave it idle, more gain nothing
_LARGEST_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}  # a larger one gains nothing on a CPU

Baseline = dict[int, Tensor]
"""Seed -> noise difference of the unpruned model, float32 `[c, h, w]`."""


@dataclass
class Cost:
    """What was spent: forward passes of one latent, backward passes of one latent, and batches."""

    forward: int = 0
    backward: int = 0
    batches: int = 0

    @property
    def samples(self) -> int:
        """Denoiser samples: a backward pass counts as two more."""
        return self.forward + 2 * self.backward


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the engine sees it: its text embedding `[77, d]`, encoded once; SDXL's pooled one."""

    text: Tensor
    pooled: Tensor | None = None


class Sample(NamedTuple):
    """One denoiser pass to make: of a prompt, with these neurons off, from this seed's noise."""

    prompt: Prompt
    off: frozenset[Neuron]
    seed: int


@dataclass(frozen=True)
class Noised:
    """A sample of the training loss: a clean latent with noise in it, to be told under a prompt.

    clean, noise: float32 `[c, h, w]`. timestep: how much noise, 0 to 999.
    """

    prompt: Prompt
    off: frozenset[Neuron]
    clean: Tensor
    noise: Tensor
    timestep: int


@dataclass(eq=False)
class Job:
    """A search of one prompt, and what its questions are answered with.

    baseline: of the prompt's seeds, as far as it is known; the first question adds what it evaluates.
    base: neurons that are off throughout, so that the search is about the model as pruned so far; its
        first question is then answered by the criterion against the baseline, which must be known.
    reference: for questions about trajectories.
    layers: value layers of which the search may ask for an attribution.
    samples: denoiser samples that its questions took so far; a backward pass counts as two more.
    """

    prompt: Prompt
    search: Steps[Any]
    baseline: Baseline = field(default_factory=dict)
    base: frozenset[Neuron] = frozenset()
    reference: Reference | None = None
    layers: Sequence[str] = ()
    samples: int = 0


class Engine:
    """Evaluates a model with neurons off; restores it whatever happens.

    Args:
        model: the loaded model.
        timestep: training timestep, 0 to 999 (the paper's code: 961).
        seed: the base of all noise; seed i of it is the same noise in every run.
        criterion: what a pruned difference is compared with: the unpruned one of the same seed
            (the paper), or those of all other seeds.
        batch_size: samples a batch, or None to grow to what the device holds.
        published: take the similarity in the unit of the published thresholds; see `similarity`.

    `note` receives, in one line, what a person should know of; a warning unless it is set. `path` is the
    model's, for messages; None: it has none. `workers` hold the same model and do part of the work, see
    `each`; `place` is the model's among those that they hold.
    """

    workers: Workers | None = None
    place = 0

    def __init__(
        self,
        model: LoadedModel,
        *,
        timestep: int,
        seed: int = 0,
        criterion: Criterion = "cross-seed",
        batch_size: int | None = None,
        published: bool = False,
    ) -> None:
        self.model = model
        self.timestep = timestep
        self.seed = seed
        self.criterion = criterion
        self.published = published
        self.cost = Cost()
        self.note: Callable[[str], None] = _warn
        self.path: Path | None = None
        self._grow = batch_size is None
        self._limit = batch_size or _LARGEST_BATCH.get(model.device.type, 16)
        self.batch_size = batch_size or min(8, self._limit)
        self._noise: dict[int, Tensor] = {}
        self._overflowed = False
        self._recomputed = False  # whether a backward pass takes a second forward pass
        # Attributions of several jobs in one batch: elsewhere it gains nothing, and a job's stays as it
        # is to the last digit whatever others run beside it.
        self.together = model.device.type != "cpu"
        # Kinds of attributions (of trajectories or not) that are known to need checkpointing. A GPU
        # says when its memory is full, and is twice as fast without; a processor would begin to swap.
        self._tight = {False, True} if model.device.type == "cpu" else set[bool]()

    # ------------------------------------------------------------------------------------ workers

    def __reduce__(self) -> tuple[Callable[[int], "Engine"], tuple[int]]:
        """An engine is sent as a word: where it arrives it is the engine of that process."""
        return engine_here, (self.place,)

    @property
    def width(self) -> int:
        """How many do the work."""
        return self.workers.count if self.workers else 1

    def each(
        self,
        work: Work,
        items: Sequence[Any],
        on_done: Callable[[int, Any], None] = lambda _place, _result: None,
        numbers: Sequence[int | str] | None = None,
    ) -> list[Any]:
        """`share` among the engine's workers."""
        return share(self.workers, work, items, on_done, numbers)

    def stream(self, work: Work, groups: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
        """`work` on one group of items after the other, by the workers if there are any."""
        if self.workers:
            yield from self.workers.stream(work, groups)
            return
        for items in groups:
            found = dict(work(items))
            yield [found[place] for place in range(len(items))]

    def keep(self, value: T) -> Kept[T]:
        """A value for work that is asked for again and again; workers are sent it once."""
        return kept(self.workers, value)

    def close(self) -> None:
        """End the workers; this engine goes on alone."""
        workers, self.workers = self.workers, None
        if workers:
            workers.close()

    # ------------------------------------------------------------------------------------ samples

    def prompts(self, texts: Sequence[str], tokens: Tokens | None = None) -> list[Prompt]:
        """Encode prompts, once. tokens: of them, where they are known."""
        embeddings, pooled = self.model.encode_pooled(texts, tokens)
        return [
            Prompt(embeddings[i], pooled[i] if pooled is not None else None) for i in range(len(texts))
        ]

    @cached_property
    def _empty(self) -> Prompt:
        return self.prompts([""])[0]

    def noise(self, seed: int) -> Tensor:
        """The starting noise x_T of one seed, `[c, h, w]`, drawn once, on the CPU."""
        if seed not in self._noise:
            generator = torch.Generator().manual_seed(noise_seed(self.seed, seed))
            self._noise[seed] = torch.randn(
                self.model.latent_shape, generator=generator, dtype=torch.float32
            )
        return self._noise[seed]

    def evaluate(
        self,
        samples: Sequence[Sample],
        on_samples: Callable[[int], None] = lambda _count: None,
        on_noise: Callable[[Sequence[Sample], Tensor], None] | None = None,
    ) -> list[Tensor]:
        """The noise difference of every sample, float32 `[c, h, w]` each, in order.

        on_noise: called with each batch and its predicted noise, float32 `[n, c, h, w]`.
        """

        def forward(batch: Sequence[Sample], model: LoadedModel) -> list[Tensor]:
            latents = self._latents(batch, model)
            noise = self._pass(model, latents, self.timestep, batch)
            differences = noise_difference(noise, latents)
            _check_finite(differences)
            if on_noise is not None:
                on_noise(batch, noise.float())
            return list(differences)

        with torch.inference_mode():
            return self._in_batches(samples, 1, forward, on_samples)

    def trajectories(
        self,
        samples: Sequence[Sample],
        schedule: Schedule,
        on_samples: Callable[[int], None] = lambda _count: None,
    ) -> list[Tensor]:
        """Where each sample ends after a few guided steps: latents in [0, 1], float32 `[c, h, w]`.

        Two denoiser samples a step, one with the prompt and one with the empty prompt; the neurons are
        off in both, as in a file.
        """
        return [scaled(one[None])[0] for one in self.drawn(samples, schedule, on_samples)]

    def drawn(
        self,
        samples: Sequence[Sample],
        schedule: Schedule,
        on_samples: Callable[[int], None] = lambda _count: None,
    ) -> list[Tensor]:
        """`trajectories` as the latents that they are, which an autoencoder makes pictures of."""
        empty = self._empty

        def forward(batch: Sequence[Sample], model: LoadedModel) -> list[Tensor]:
            both = [*(sample._replace(prompt=empty) for sample in batch), *batch]
            found = clean_latents(
                self._latents(batch, model).float(),
                schedule,
                model.alphas_cumprod,
                lambda latents, timestep: self._pass(
                    model, torch.cat([latents, latents]).to(model.dtype), timestep, both
                ),
            )
            _check_finite(found)
            return list(found)

        with torch.inference_mode():
            return self._in_batches(samples, 2, forward, lambda n: on_samples(n * schedule.passes))

    def _in_batches(
        self,
        samples: Sequence[S],
        width: int,
        forward: Callable[[Sequence[S], LoadedModel], list[R]],
        on_samples: Callable[[int], None],
        spare: Callable[[], bool] = lambda: False,
    ) -> list[R]:
        """`forward` on all samples, each of which takes the room of `width` in a batch.

        spare: called where memory is full; whether from now on `forward` takes less, so that the same
            batch is worth another try.
        """
        found: list[R] = []
        while len(found) < len(samples):
            batch = samples[len(found) : len(found) + max(1, self.batch_size // width)]
            try:
                found += self._with_fp32(partial(forward, batch))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if not spare():
                    if len(batch) == 1:
                        raise
                    self.batch_size = self._limit = max(1, width * len(batch) // 2)
                full = True
            else:
                full = False
            if full:  # here, where the error no longer holds what did not fit
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            on_samples(len(batch))
            if self._grow and width * len(batch) >= self.batch_size:
                self.batch_size = min(2 * self.batch_size, self._limit)
        return found

    def _with_fp32(self, work: Callable[[LoadedModel], R]) -> R:
        """`work` on the model; again in fp32 if half precision overflows."""
        try:
            return work(self.model)
        except _NotFiniteError:
            if self.model.dtype == torch.float32:
                raise _broken(self.path) from None
        if not self._overflowed:
            self._overflowed = True
            self.note(
                f"{self.model.precision} overflowed: such batches are "
                f"evaluated again in fp32; {option('precision')} fp32 does so from the start"
            )
        try:
            with self.model.exact() as exact:
                return work(exact)
        except _NotFiniteError:
            raise _broken(self.path) from None

    def _latents(self, batch: Sequence[Sample], model: LoadedModel) -> Tensor:
        latents = torch.stack([self.noise(sample.seed) for sample in batch])
        return latents.to(model.device, model.dtype)

    def _pass(
        self,
        model: LoadedModel,
        latents: Tensor,
        timestep: int,
        batch: Sequence[Sample],
        *,
        masked: bool = False,
    ) -> Tensor:
        """The noise that the model predicts in `latents` `[n, c, h, w]`; may hold NaN or infinity.

        masked: the value layers have their masks already.
        """
        text = torch.stack([sample.prompt.text for sample in batch]).to(model.dtype)
        pooled = [
            sample.prompt.pooled.to(model.dtype) for sample in batch if sample.prompt.pooled is not None
        ]
        masks = {} if masked else masks_of(model, [sample.off for sample in batch])
        with masked_layers(model.value_layers, masks):
            noise = model.predict_noise(latents, timestep, text, torch.stack(pooled) if pooled else None)
        self.cost.forward += len(batch)
        self.cost.batches += 1
        return noise

    # ------------------------------------------------------------------------------------- scores

    def baseline(self, prompt: Prompt, seeds: Sequence[int], known: Baseline | None = None) -> Baseline:
        """The unpruned model's noise differences of the seeds; those in `known` are not taken again."""
        known = known or {}
        missing = [seed for seed in seeds if seed not in known]
        found = self.evaluate([Sample(prompt, frozenset(), seed) for seed in missing])
        taken = known | dict(zip(missing, found, strict=True))
        return {seed: taken[seed] for seed in seeds}

    def score_prompts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[dict[int, float]]:
        """Each prompt's scores without pruning: seed -> best pairwise score with another seed."""
        scores = []
        for prompt in prompts:
            scores.append(best_pairs(self.baseline(prompt, seeds), published=self.published))
            advance(1)
        return scores

    def compare(
        self, baseline: Baseline, pruned: "Engine", prompt: Prompt, seeds: Sequence[int]
    ) -> dict[int, float]:
        """The criterion's scores of another model, already pruned, against this one's baseline.

        `prompt` is as the pruned model's engine encodes it; both draw the same noise.
        """
        found = pruned.evaluate([Sample(prompt, frozenset(), seed) for seed in seeds])
        return self.scores(dict(zip(seeds, found, strict=True)), baseline)

    def probe(
        self,
        prompt: Prompt,
        off: frozenset[Neuron],
        seeds: Sequence[int],
        known: Baseline | None = None,
    ) -> tuple[dict[int, float], Baseline]:
        """The criterion's scores on seeds that no search used, and the baseline it took of them.

        One sample a seed, and one more where `known` lacks the baseline.
        """
        baseline = self.baseline(prompt, seeds, known)
        found = self.evaluate([Sample(prompt, off, seed) for seed in seeds])
        return self.scores(dict(zip(seeds, found, strict=True)), baseline), baseline

    def scores(self, pruned: Mapping[int, Tensor], baseline: Baseline) -> dict[int, float]:
        """The criterion's score of each pruned difference, by seed."""
        return scores_against(pruned, baseline, self.criterion, published=self.published)

    def differences(
        self, prompt: Prompt, seeds: Sequence[int], off: frozenset[Neuron] = frozenset()
    ) -> Tensor:
        """The noise differences of a prompt with neurons off, float32 `[seeds, c, h, w]`."""
        return torch.stack(self.evaluate([Sample(prompt, off, seed) for seed in seeds]))

    # -------------------------------------------------------------------------------- attribution

    def attribution(self, job: Job, wanted: Attribute) -> Attribution:
        """How much each value neuron of the job's layers does for the memory, by integrated gradients.

        Neuron -> attribution, summed over the seeds; neurons that are off in the question, or that it
        is not about, are left out. Where memory is short each layer's activations are computed again
        on the way back (gradient checkpointing), so that a large denoiser takes little more than in a
        forward pass.
        """
        return self.attributions([(job, wanted)])[0]

    def attributions(self, asked: Sequence[tuple[Job, Attribute]]) -> list[Attribution]:
        """`attribution` of several jobs in the same batches: of the same layers, kind and points."""
        layers, trajectory, points = asked[0][0].layers, asked[0][1].trajectory, asked[0][1].points
        memory = self._trajectory_memory if trajectory else self._memory
        offs = [wanted.off | job.base for job, wanted in asked]

        def backward(
            batch: Sequence[tuple[Job, Sample, frozenset[Neuron] | None]], model: LoadedModel
        ) -> list[Tensor]:
            jobs, samples, among = zip(*batch, strict=True)
            off = [sample.off for sample in samples]
            masking = Masking(model.value_layers, layers, off, model.device, model.dtype, among)
            try:
                with self._checkpointed(model, trajectory):
                    found = attribute(
                        masking,
                        lambda: memory(model, jobs, samples),
                        partial(masked_layers, model.value_layers),
                        points,
                    )
            except FloatingPointError:
                raise _NotFiniteError from None
            return list(found)

        samples = [
            (job, Sample(job.prompt, off, seed), wanted.among)
            for (job, wanted), off in zip(asked, offs, strict=True)
            for seed in wanted.seeds
        ]
        parts = iter(
            self._in_batches(
                samples, self._gradient_width, backward, lambda _n: None, self._spare(trajectory)
            )
        )
        values = self.model.value_layers
        neurons = [Neuron(name, row) for name in layers for row in range(values[name].out_features)]
        found: list[Attribution] = []
        for (_, wanted), off in zip(asked, offs, strict=True):
            total = torch.stack([next(parts) for _ in wanted.seeds]).sum(dim=0).tolist()
            among = set(neurons if wanted.among is None else wanted.among) - off
            found.append({n: value for n, value in zip(neurons, total, strict=True) if n in among})
        return found

    def text_gradients(
        self, samples: Sequence[Noised], on_samples: Callable[[int], None] = lambda _count: None
    ) -> list[Tensor]:
        """The gradient of each sample's squared error by its text embedding, float32 `[tokens, d]`.

        The error is that of the predicted noise, summed over the latent: what training makes small.
        Three denoiser samples each, since a backward pass counts as two.
        """

        def backward(batch: Sequence[Noised], model: LoadedModel) -> list[Tensor]:
            device = model.device
            timesteps = torch.tensor([one.timestep for one in batch], dtype=torch.long, device=device)
            noise = torch.stack([one.noise for one in batch]).to(device)
            alpha = model.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
            clean = torch.stack([one.clean for one in batch]).to(device)
            latents = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            # A leaf of its own: the error flows back to here and no further.
            text = torch.stack([one.prompt.text for one in batch]).to(device, model.dtype, copy=True)
            pooled = [
                one.prompt.pooled.to(model.dtype) for one in batch if one.prompt.pooled is not None
            ]
            with (
                torch.enable_grad(),
                self._checkpointed(model, True),
                masked_layers(model.value_layers, masks_of(model, [one.off for one in batch])),
            ):
                predicted = model.predict_noise(
                    latents, timesteps, text.requires_grad_(), torch.stack(pooled) if pooled else None
                )
                self.cost.forward += len(batch)
                self.cost.batches += 1
                self._count_backward(len(batch))
                error = (predicted.float() - noise).square().sum()
                (found,) = torch.autograd.grad(error, text)
            _check_finite(found)
            return list(found.float())

        return self._in_batches(
            samples, self._gradient_width, backward, lambda n: on_samples(3 * n), self._spare(True)
        )

    @property
    def _gradient_width(self) -> int:
        """The room that a backward pass takes in a batch, in samples."""
        return 3 if self.model.device.type == "cpu" else max(3, self.batch_size // _GRADIENTS)

    def _spare(self, trajectory: bool) -> Callable[[], bool]:
        """For `_in_batches`: where memory is full, gradient checkpointing is taken from now on."""

        def spare() -> bool:
            known = trajectory in self._tight
            self._tight.add(trajectory)
            return not known

        return spare

    @contextmanager
    def _checkpointed(self, model: LoadedModel, trajectory: bool) -> Iterator[None]:
        """Gradient checkpointing for large denoisers where memory is short, off again on any exit."""
        size = sum(parameter.numel() for parameter in model.unet.parameters())
        self._recomputed = (
            size > _LARGE
            and trajectory in self._tight
            and hasattr(model.unet, "enable_gradient_checkpointing")
        )
        if not self._recomputed:
            yield
            return
        model.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            model.unet.disable_gradient_checkpointing()
            self._recomputed = False

    def _count_backward(self, samples: int) -> None:
        self.cost.backward += samples
        self.cost.forward += samples if self._recomputed else 0

    def _memory(self, model: LoadedModel, jobs: Sequence[Job], samples: Sequence[Sample]) -> Tensor:
        latents = self._latents(samples, model)
        noise = self._pass(model, latents, self.timestep, samples, masked=True)
        self._count_backward(len(samples))
        pruned = noise_difference(noise, latents)
        others = [
            [job.baseline[i] for i in compared_with(sample.seed, job.baseline, self.criterion)]
            for job, sample in zip(jobs, samples, strict=True)
        ]
        return soft_maxima(pruned, others)

    def _trajectory_memory(
        self, model: LoadedModel, jobs: Sequence[Job], samples: Sequence[Sample]
    ) -> Tensor:
        references = [job.reference for job in jobs if job.reference is not None]
        empty = self._empty
        both = [*(sample._replace(prompt=empty) for sample in samples), *samples]

        def predict(latents: Tensor, timestep: int) -> Tensor:
            self._count_backward(len(both))
            doubled = torch.cat([latents, latents]).to(model.dtype)
            return self._pass(model, doubled, timestep, both, masked=True)

        ends = denoise(
            self._latents(samples, model).float(),
            references[0].schedule,
            model.alphas_cumprod,
            predict,
        )
        return soft_maxima(ends, [reference.latents for reference in references])


def noise_seed(base: int, seed: int) -> int:
    """Two numbers as the one that a generator takes: seed 1 shares no noise with seed 0."""
    return base * 1_000_003 + seed


class _NotFiniteError(Exception):
    """A batch gave NaN or infinity."""


def _check_finite(found: Tensor) -> None:
    if not bool(found.isfinite().all()):
        raise _NotFiniteError


def _broken(path: Path | None) -> CheckpointError:
    of = f"{path}: " if path else ""
    return CheckpointError(
        f"{of}the denoiser gave NaN or infinity in fp32 too, which says nothing about "
        "memorization; check the model's weights, or download it again"
    )


def _warn(message: str) -> None:
    warnings.warn(rendered(message), RuntimeWarning, stacklevel=3)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words
