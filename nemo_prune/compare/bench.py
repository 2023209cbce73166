"""The bench: one loaded model, and what every method may ask of it.

    bench = Bench(checkpoint, prompts, ordinary, options, steps=50, guidance=7.0)
    pictures = bench.draw(prompts[0], range(4))

The scoring engine and the drawing pipeline share one denoiser. Methods change it inside context
managers alone, so that it is as loaded between any two calls.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.compare.methods import State
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.hub import DDIMScheduler, quiet
from nemo_prune.model.loading import pipeline_of
from nemo_prune.options import Options, Progress, Silent
from nemo_prune.report.pictures import draw
from nemo_prune.scoring.engine import Engine, noise_seed
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.sharing import Workers
from nemo_prune.scoring.workers import sent

_pipelines: WeakKeyDictionary[Engine, Any] = WeakKeyDictionary()


class Bench:
    """One loaded model and what every method may ask of it.

    Args:
        checkpoint: the model, unpruned.
        prompts: the memorized captions that are compared. ordinary: ordinary captions.
        options: how it is loaded, scored and searched; the seed of all randomness.
        steps, guidance: of pictures, DDIM.
        calibration_prompts: what tells tau and the gate; None: bundled captions, as everywhere.
        progress: is told what takes long.

    Attributes:
        engine: scores and searches; `samples` counts what it, the drawing and the methods spent.
        pipeline: diffusers'; draws with the same denoiser. calibration: what is ordinary for the model:
        activation statistics, tau, the gate. states: what methods found, by their name and the prompt
        (None: for the whole list). Methods that
            build on another's state take it from here, so that nothing is searched twice; a run that is
            resumed puts in what it has.
        kept: what methods measured of the model itself, so as to measure it once.

    Raises OptionError, CheckpointError, CalibrationError.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[str],
        ordinary: Sequence[str],
        options: Options,
        *,
        steps: int = 50,
        guidance: float = 7.0,
        calibration_prompts: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.prompts, self.ordinary = list(prompts), list(ordinary)
        self.steps, self.guidance = steps, guidance
        self.calibration_prompts = calibration_prompts
        self.progress: Progress = progress or Silent()
        self.engine = open_engine(checkpoint, options, self.progress, workers=True)
        try:
            _ = self.pipeline  # raises where the model cannot draw
            self.calibration = Ordinary(
                self.engine, checkpoint, options, calibration_prompts, self.progress
            )
        except BaseException:
            self.engine.close()
            raise
        self.states: dict[tuple[str, str | None], State] = {}
        self.kept: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What methods found is sent with the prompts.
        return {**self.__dict__, "options": sent(self.options), "progress": Silent(), "states": {}}

    def close(self) -> None:
        """Give the model's memory back, and end the workers."""
        self.loaded.release()
        self.engine.close()

    @property
    def workers(self) -> Workers | None:
        """Who hold the same model and share the prompts, if the options ask for some."""
        return self.engine.workers

    @property
    def pipeline(self) -> Any:
        """Of the engine's model, one for all benches in a process."""
        if self.engine not in _pipelines:
            model = self.engine.model
            _pipelines[self.engine] = pipeline_of(model, self.checkpoint, self.options.config)
            self.engine.model = replace(model, blank=None)
        return _pipelines[self.engine]

    @property
    def loaded(self) -> LoadedModel:
        return self.engine.model

    @property
    def samples(self) -> int:
        """Denoiser samples spent so far, a backward pass counted as two more."""
        return self.engine.cost.samples

    @property
    def guided(self) -> bool:
        """Whether pictures take two denoiser samples a step, the second with the prompt."""
        return self.guidance > 1 and not self.loaded.embeds_guidance

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """The generators' seeds of pictures 0, 1, ...: those of every report, which no search uses."""
        return [noise_seed(self.options.seed, FRESH_SEEDS + number) for number in numbers]

    def noise(self, numbers: Sequence[int]) -> Tensor:
        """The starting noise of pictures as the pipeline draws it, `[n, c, h, w]`, on the device."""
        model = self.loaded
        one = (1, *model.latent_shape)
        drawn = [
            torch.randn(one, generator=torch.Generator().manual_seed(seed), dtype=model.dtype)
            for seed in self.seeds(numbers)
        ]
        return torch.cat(drawn).to(model.device)

    def draw(
        self,
        prompt: str,
        seeds: Sequence[int],
        *,
        within: AbstractContextManager[object] | None = None,
        embedding: Tensor | None = None,
    ) -> NDArray[np.uint8]:
        """Pictures of a prompt, uint8 `[n, height, width, 3]`, as reports draw them.

        Args:
            seeds: numbers of pictures, from 0; a number's noise is the same for every method.
            within: what changes the model while it draws, and undoes it on any exit.
            embedding: of the text, `[tokens, d]`, in place of the prompt's own.

        Raises torch.OutOfMemoryError where not even one fits.
        """
        texts = {}
        if embedding is not None:
            texts = {**self.texts(prompt), "prompt_embeds": embedding[None].to(self.loaded.dtype)}
        with within or nullcontext():
            (pictures,) = draw(
                self.pipeline, [prompt], self.seeds(seeds), steps=self.steps,
                guidance=self.guidance, embeddings=texts,
            )  # fmt: skip
        self.engine.cost.forward += len(pictures) * self.steps * (2 if self.guided else 1)
        return np.stack(pictures)

    @quiet()
    def texts(self, prompt: str) -> dict[str, Tensor]:
        """What a UNet's pipeline draws a prompt from, by its arguments' names, `[1, ...]` each.

        "prompt_embeds" and "negative_prompt_embeds", the latter without the prompt; SDXL's pooled ones.
        """
        names = ("prompt_embeds", "negative_prompt_embeds")
        if self.loaded.record.pooled:
            names += ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")  # type: ignore[assignment]
        with torch.no_grad():
            found = self.pipeline.encode_prompt(
                prompt,
                device=self.loaded.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
            )
        return dict(zip(names, found, strict=True))

    def steps_of(self, prompt: str, latents: Tensor, most: int) -> Iterator[int]:
        """Take the first steps of a picture, at most so many; yields each one's number before it.

        latents: the starting noise, `[n, c, h, w]`.
        """
        model, texts = self.loaded, self.texts(prompt)
        scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(self.steps)
        halves = ("negative_", "") if self.guided else ("",)
        count = len(latents)

        def batched(name: str) -> Tensor | None:
            if name not in texts:
                return None
            return torch.cat(
                [texts[half + name].expand(count, *texts[name].shape[1:]) for half in halves]
            )

        text, pooled = batched("prompt_embeds"), batched("pooled_prompt_embeds")
        assert text is not None
        x = latents.to(model.device, model.dtype) * scheduler.init_noise_sigma
        for number, timestep in enumerate(scheduler.timesteps[:most]):
            yield number
            with torch.no_grad():
                output = model.output(torch.cat([x] * len(halves)), int(timestep), text, pooled)
            self.engine.cost.forward += len(output)
            if self.guided:
                without, with_prompt = output.chunk(2)
                output = without + self.guidance * (with_prompt - without)
            x = scheduler.step(output, timestep, x).prev_sample
