"""The engine: holds the denoiser and answers the searches' questions, in full batches.

Many prompts' searches are in flight at once; their open questions are packed into batches, with a
mask per sample on every value layer they touch. Every pair (neurons off, seed) is one denoiser
sample: no guidance, one timestep, the starting noise x_T itself as input (the paper's setting).
"""

import copy
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from nemo_prune.denoiser import LoadedModel
from nemo_prune.errors import CheckpointError
from nemo_prune.manifest import Neuron
from nemo_prune.search import Answer, Question
from nemo_prune.similarity import ms_ssim, noise_difference, pairwise
from nemo_prune.union_search import Pair, UnionSearch

T = TypeVar("T")
Criterion = Literal["same-seed", "cross-seed"]
PROMPTS_AT_ONCE = 256
"""Prompts whose embeddings are held at once, however long a list is."""
_LARGEST_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}  # a larger one gains nothing on a CPU
_DIGITS = 5  # of a score: what is left of the noise of another batch size is below that


@dataclass
class Cost:
    """What was spent: denoiser samples (forward passes of one latent) and batches."""

    samples: int = 0
    batches: int = 0


@dataclass(eq=False)
class Prompt:
    """A prompt as the engine sees it: its text embedding [77, d], encoded once.

    `clean` holds the noise differences of the unpruned model by seed, float32 [c, h, w]; `norms`
    the norms of conditional minus unconditional noise by seed, if the engine takes them.
    """

    text: Tensor
    pooled: Tensor | None
    clean: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sample:
    prompt: Prompt
    off: frozenset[Neuron]
    seed: int
    unconditional: bool = False


class Engine:
    """Evaluates noise differences with chosen neurons off.

    Args:
        model: the loaded model; restored whatever happens.
        timestep: training timestep, 0 to 999 (the paper's code: 961).
        seed: the base of all noise; seed i of it is the same noise in every run.
        criterion: what a pruned difference is compared with: the unpruned one of the same seed
            (the paper), or those of all other seeds.
        batch_size: samples a batch, or None to grow to what the device holds.

    `note` is told, in one line, what a person should know of; a warning unless it is set.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        timestep: int,
        seed: int = 0,
        criterion: Criterion = "cross-seed",
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.timestep = timestep
        self.seed = seed
        self.criterion = criterion
        self.cost = Cost()
        self._grow = batch_size is None
        self._limit = batch_size or _LARGEST_BATCH.get(model.device.type, 16)
        self.batch_size = batch_size or min(8, self._limit)
        self._noise: dict[int, Tensor] = {}
        self._unconditional: dict[int, Tensor] = {}
        self.note: Callable[[str], None] = _warn
        self._exact: LoadedModel | None = None

    # ---------------------------------------------------------------------------------- prompts

    def prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """Encode prompts, once."""
        embeddings, pooled = self.model.encode_pooled(texts)
        return [
            Prompt(embeddings[i], pooled[i] if pooled is not None else None) for i in range(len(texts))
        ]

    def noise(self, seed: int) -> Tensor:
        """The starting noise x_T of one seed, `[c, h, w]`, drawn once, on the CPU."""
        if seed not in self._noise:
            # Two numbers into one, so that --seed 1 shares no noise with --seed 0.
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
            self._noise[seed] = torch.randn(self.model.latent_shape, generator=generator)
        return self._noise[seed]

    def take_norms(self, seeds: Sequence[int]) -> None:
        """From now on, keep ||eps(prompt) - eps("")|| of every unpruned sample in `Prompt.norms`.

        The L2 norm over all latent channels and pixels, by Wen et al., "Detecting, Explaining, and
        Mitigating Memorization in Diffusion Models" (ICLR 2024), at this engine's
        timestep. Costs one sample a seed, whatever the number of prompts.
        """
        (empty,) = self.prompts([""])
        missing = [seed for seed in seeds if seed not in self._unconditional]
        self._differences([_Sample(empty, frozenset(), seed, unconditional=True) for seed in missing])

    # ------------------------------------------------------------------------------------ scores

    def score_prompts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[dict[int, float]]:
        """Each prompt's scores without pruning: seed -> best pairwise score with another seed."""
        scores = []
        for prompt in prompts:
            samples = [_Sample(prompt, frozenset(), seed) for seed in seeds]
            prompt.clean = dict(zip(seeds, self._differences(samples), strict=True))
            scores.append(self._best_pairs(prompt, seeds))
            advance(1)
        return scores

    def compare(
        self, prompt: Prompt, seeds: Sequence[int], pruned: "Engine", twin: Prompt
    ) -> dict[int, float]:
        """The criterion's scores of another model, already pruned, against this one.

        `twin` is the prompt as the pruned model's engine encodes it; both draw the same noise.
        """
        missing = [seed for seed in seeds if seed not in prompt.clean]
        samples = [_Sample(prompt, frozenset(), seed) for seed in missing]
        prompt.clean.update(zip(missing, self._differences(samples), strict=True))
        found = pruned._differences([_Sample(twin, frozenset(), seed) for seed in seeds])
        return self._scores(prompt, seeds, seeds, found)

    def probe(self, prompt: Prompt, off: frozenset[Neuron], seeds: Sequence[int]) -> dict[int, float]:
        """The criterion's scores on seeds that no search used: two samples a seed."""
        samples = [_Sample(prompt, frozenset(), seed) for seed in seeds]
        prompt.clean = dict(zip(seeds, self._differences(samples), strict=True))
        found = self._differences([_Sample(prompt, off, seed) for seed in seeds])
        return self._scores(prompt, seeds, seeds, found)

    def differences(
        self, prompt: Prompt, seeds: Sequence[int], off: frozenset[Neuron] = frozenset()
    ) -> Tensor:
        """The noise differences of a prompt with neurons off, float32 `[seeds, c, h, w]`."""
        return torch.stack(self._differences([_Sample(prompt, off, seed) for seed in seeds]))

    def _best_pairs(self, prompt: Prompt, seeds: Sequence[int]) -> dict[int, float]:
        best = pairwise(torch.stack([prompt.clean[seed] for seed in seeds])).amax(dim=1)
        return {seed: _rounded(score) for seed, score in zip(seeds, best.tolist(), strict=True)}

    def _scores(
        self, prompt: Prompt, seeds: Sequence[int], against: Sequence[int], pruned: Sequence[Tensor]
    ) -> dict[int, float]:
        """The criterion for the pruned differences of `seeds`, compared with those of `against`."""
        left, right = [], []
        for seed, difference in zip(seeds, pruned, strict=True):
            others = [seed] if self.criterion == "same-seed" else [i for i in against if i != seed]
            left += [difference] * len(others)
            right += [prompt.clean[i] for i in others]
        values = iter(ms_ssim(torch.stack(left), torch.stack(right)).tolist())
        width = 1 if self.criterion == "same-seed" else len(against) - 1
        return {seed: _rounded(max(next(values) for _ in range(width))) for seed in seeds}

    # ---------------------------------------------------------------------------------- searches

    def run(
        self,
        searches: Sequence[tuple[Prompt, Generator[Question, Answer, T]]],
        *,
        in_flight: int = 64,
        on_samples: Callable[[int], None] = lambda _count: None,
        on_finished: Callable[[int, T], None] = lambda _index, _outcome: None,
        base: frozenset[Neuron] = frozenset(),
    ) -> list[T]:
        """Run searches to their ends, with at most `in_flight` of them open at once.

        With neurons in `base` they are off throughout: the searches are about the model as pruned
        so far, and their first question is answered with the criterion's scores against the
        unpruned differences, which each prompt must still have (as after `probe`).

        Open questions are answered in rounds: all samples that the open searches ask for now, in
        batches of `batch_size`. `on_finished` is called as each one ends, in whatever order.
        Differences of the unpruned model that a prompt still has are not evaluated again.
        """
        outcomes: dict[int, T] = {}
        waiting = deque(enumerate(searches))
        open_: dict[int, Question] = {}
        while waiting or open_:
            while waiting and len(open_) < in_flight:
                index, (_, search) = waiting.popleft()
                open_[index] = next(search)
            asked = {
                index: [
                    _Sample(searches[index][0], question.off | base, seed)
                    for seed in question.seeds
                    if question.off or base or seed not in searches[index][0].clean
                ]
                for index, question in open_.items()
            }
            samples = [sample for wanted in asked.values() for sample in wanted]
            differences = iter(self._differences(samples, on_samples))
            for index, question in list(open_.items()):
                prompt, search = searches[index]
                found = {sample.seed: next(differences) for sample in asked[index]}
                try:
                    open_[index] = search.send(self._answer(prompt, question, found, base))
                except StopIteration as end:
                    outcomes[index] = end.value
                    del open_[index]
                    prompt.clean = {}
                    on_finished(index, end.value)
        return [outcomes[index] for index in range(len(searches))]

    def run_union(self, search: UnionSearch, prompts: Mapping[int, Prompt]) -> tuple[Neuron, ...]:
        """Run a search over the union to its end, each of its questions in full batches.

        `prompts`: by number; each must still have its unpruned differences (as after `probe`).
        """
        question = next(search)
        while True:
            samples = [_Sample(prompts[index], question.off, seed) for index, seed in question.pairs]
            answer: dict[Pair, float] = {}
            for (index, seed), one in zip(question.pairs, self._differences(samples), strict=True):
                prompt = prompts[index]
                answer[index, seed] = self._scores(prompt, [seed], list(prompt.clean), [one])[seed]
            try:
                question = search.send(answer)
            except StopIteration as end:
                kept: tuple[Neuron, ...] = end.value
                return kept

    def _answer(
        self, prompt: Prompt, question: Question, found: dict[int, Tensor], base: frozenset[Neuron]
    ) -> dict[int, float]:
        if not question.off and not base:
            known = prompt.clean | found
            prompt.clean = {seed: known[seed] for seed in question.seeds}
            return self._best_pairs(prompt, question.seeds)
        return self._scores(prompt, question.seeds, list(prompt.clean), list(found.values()))

    # ---------------------------------------------------------------------------------- denoiser

    def _differences(
        self, samples: Sequence[_Sample], on_samples: Callable[[int], None] = lambda _count: None
    ) -> list[Tensor]:
        """The noise difference of every sample, float32 [c, h, w] each, in order."""
        found: list[Tensor] = []
        while len(found) < len(samples):
            batch = samples[len(found) : len(found) + self.batch_size]
            try:
                found += self._batch(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = self._limit = max(1, len(batch) // 2)
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            on_samples(len(batch))
            if self._grow and len(batch) == self.batch_size:
                self.batch_size = min(2 * self.batch_size, self._limit)
        return found

    def _batch(self, batch: Sequence[_Sample]) -> list[Tensor]:
        differences = self._evaluate(self.model, batch)
        if not bool(differences.isfinite().all()) and self.model.dtype != torch.float32:
            differences = self._evaluate(self._in_fp32(), batch)
        if not bool(differences.isfinite().all()):
            raise CheckpointError(
                "the denoiser gave NaN or infinity in fp32 too, which says nothing about "
                "memorization; check the model's weights, or download it again"
            )
        return list(differences)

    def _in_fp32(self) -> LoadedModel:
        """The model with an fp32 copy of its UNet, made when the first batch overflows, then kept."""
        if self._exact is None:
            self.note(
                f"{self.model.precision} overflowed: such batches are "
                "evaluated again in fp32; --precision fp32 does so from the start"
            )
            unet = copy.deepcopy(self.model.unet).float()
            blank = self.model.blank
            self._exact = replace(
                self.model,
                unet=unet,
                value_layers={name: unet.get_submodule(name) for name in self.model.value_layers},
                dtype=torch.float32,
                blank=None if blank is None else blank.float(),
            )
        return self._exact

    @torch.inference_mode()
    def _evaluate(self, model: LoadedModel, batch: Sequence[_Sample]) -> Tensor:
        """The noise differences of one batch, float32 `[n, c, h, w]`; may hold NaN or infinity."""
        latents = torch.stack([self.noise(sample.seed) for sample in batch])
        latents = latents.to(model.device, model.dtype)
        text = torch.stack([sample.prompt.text for sample in batch]).to(model.dtype)
        pooled = [
            sample.prompt.pooled.to(model.dtype) for sample in batch if sample.prompt.pooled is not None
        ]
        masks = _masks(model, [sample.off for sample in batch])
        with masked(model.value_layers, masks):
            noise = model.predict_noise(
                latents, self.timestep, text, torch.stack(pooled) if pooled else None
            )
        self._keep_norms(batch, noise)
        differences = noise_difference(noise, latents)
        self.cost.samples += len(batch)
        self.cost.batches += 1
        return differences

    def _keep_norms(self, batch: Sequence[_Sample], noise: Tensor) -> None:
        """Take Wen et al.'s measure from predicted noises `[n, c, h, w]` that are there anyway."""
        for sample, predicted in zip(batch, noise, strict=True):
            if sample.unconditional:
                self._unconditional[sample.seed] = predicted.float()
        kept = [
            (i, sample)
            for i, sample in enumerate(batch)
            if sample.seed in self._unconditional and not sample.off and not sample.unconditional
        ]
        if kept:
            empty = torch.stack([self._unconditional[sample.seed] for _, sample in kept])
            norms = (noise[[i for i, _ in kept]].float() - empty).flatten(1).norm(dim=1).tolist()
            for (_, sample), norm in zip(kept, norms, strict=True):
                sample.prompt.norms[sample.seed] = norm


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _masks(model: LoadedModel, offs: Sequence[frozenset[Neuron]]) -> dict[str, Tensor]:
    """Layer name -> [n, 1, rows] of ones and zeros, for the layers that any sample touches."""
    masks: dict[str, Tensor] = {}
    for sample, off in enumerate(offs):
        for neuron in off:
            if neuron.layer not in masks:
                rows = model.value_layers[neuron.layer].out_features
                masks[neuron.layer] = torch.ones(len(offs), 1, rows, dtype=model.dtype)
            masks[neuron.layer][sample, 0, neuron.row] = 0
    return {layer: mask.to(model.device) for layer, mask in masks.items()}


@contextmanager
def masked(layers: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the output of each value layer by its mask [n, 1, rows]; undone on any exit."""

    def hook(mask: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda _module, _inputs, output: output * mask

    handles = [layers[name].register_forward_hook(hook(mask)) for name, mask in masks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words


def _rounded(score: float) -> float:
    return round(score, _DIGITS)
