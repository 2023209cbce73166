"""Denoiser samples in full batches, with neurons masked per sample.

A sample is one forward pass of one latent: no guidance, one timestep, the starting noise x_T itself
as input (the paper's setting). Out of memory halves the batch; what overflows is run again in fp32.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError, option, rendered
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.scoring.similarity import noise_difference

_LARGEST_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}  # a larger one gains nothing on a CPU


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
class Sample:
    prompt: Prompt
    off: frozenset[Neuron]
    seed: int
    unconditional: bool = False


class Batches:
    """Evaluates denoiser samples, in batches that grow to what the device holds.

    Args:
        model: the loaded model; restored whatever happens.
        timestep: training timestep, 0 to 999 (the paper's code: 961).
        seed: the base of all noise; seed i of it is the same noise in every run.
        batch_size: samples a batch, or None to grow to what the device holds.

    `note` is told, in one line, what a person should know of; a warning unless it is set.
    """

    def __init__(
        self, model: LoadedModel, *, timestep: int, seed: int = 0, batch_size: int | None = None
    ) -> None:
        self.model = model
        self.timestep = timestep
        self.seed = seed
        self.cost = Cost()
        self._grow = batch_size is None
        self._limit = batch_size or _LARGEST_BATCH.get(model.device.type, 16)
        self.batch_size = batch_size or min(8, self._limit)
        self._noise: dict[int, Tensor] = {}
        self._unconditional: dict[int, Tensor] = {}
        self.note: Callable[[str], None] = _warn
        self.exact: LoadedModel | None = None  # in fp32, once half precision overflowed

    def prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """Encode prompts, once."""
        embeddings, pooled = self.model.encode_pooled(texts)
        return [
            Prompt(embeddings[i], pooled[i] if pooled is not None else None) for i in range(len(texts))
        ]

    def noise(self, seed: int) -> Tensor:
        """The starting noise x_T of one seed, `[c, h, w]`, drawn once, on the CPU."""
        if seed not in self._noise:
            generator = torch.Generator().manual_seed(noise_seed(self.seed, seed))
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
        self.evaluate([Sample(empty, frozenset(), seed, unconditional=True) for seed in missing])

    def evaluate(
        self, samples: Sequence[Sample], on_samples: Callable[[int], None] = lambda _count: None
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

    def _batch(self, batch: Sequence[Sample]) -> list[Tensor]:
        differences = self._forward(self.model, batch)
        if not bool(differences.isfinite().all()) and self.model.dtype != torch.float32:
            differences = self._forward(self._in_fp32(), batch)
        if not bool(differences.isfinite().all()):
            raise CheckpointError(
                "the denoiser gave NaN or infinity in fp32 too, which says nothing about "
                "memorization; check the model's weights, or download it again"
            )
        return list(differences)

    def _in_fp32(self) -> LoadedModel:
        """The model with an fp32 copy of its UNet, made when the first batch overflows, then kept."""
        if self.exact is None:
            self.note(
                f"{self.model.precision} overflowed: such batches are "
                f"evaluated again in fp32; {option('precision')} fp32 does so from the start"
            )
            unet = copy.deepcopy(self.model.unet).float()
            for module in unet.modules():
                module._forward_hooks.clear()  # whoever watches the model does not watch its copy
            blank = self.model.blank
            self.exact = replace(
                self.model,
                unet=unet,
                value_layers={name: unet.get_submodule(name) for name in self.model.value_layers},
                dtype=torch.float32,
                blank=None if blank is None else blank.float(),
            )
        return self.exact

    @torch.inference_mode()
    def _forward(self, model: LoadedModel, batch: Sequence[Sample]) -> Tensor:
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

    def _keep_norms(self, batch: Sequence[Sample], noise: Tensor) -> None:
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


def noise_seed(base: int, seed: int) -> int:
    """Two numbers as the one that a generator takes: --seed 1 shares no noise with --seed 0."""
    return base * 1_000_003 + seed


def _warn(message: str) -> None:
    warnings.warn(rendered(message), RuntimeWarning, stacklevel=3)


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
