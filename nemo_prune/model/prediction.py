"""What a denoiser predicts: what is told of it, and what its output shows.

A denoiser that predicts epsilon and one that predicts v differ in no tensor's name or shape, and the
wrong reading gives scores that mean nothing. But given noise at the last timestep, a trained epsilon
model returns nearly that noise, whatever the picture (all but sqrt(1 - alpha-bar) of it is noise), and
a v model nearly -x0, which hardly depends on it. At a quarter of the timesteps both return the noise
in a grey picture: v is then sqrt(alpha-bar) epsilon. A denoiser that does not is untrained, or of
another kind, and shows nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from nemo_prune.errors import CheckpointError, option, rendered
from nemo_prune.model.configs import Told

if TYPE_CHECKING:
    from pathlib import Path

    from nemo_prune.model.denoiser import LoadedModel

PredictionType = Literal["epsilon", "v_prediction"]
# Correlation of output and noise. The demo as it is: .999 at the last timestep; the same model turned
# into one that predicts v: -.07 to .20, and .98 at a quarter. Random weights: about 0 at both.
_IS_NOISE, _IS_NO_NOISE, _TRAINED = 0.9, 0.5, 0.8
_WORDS = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class Prediction:
    """What a denoiser is taken to predict, and why.

    told: what is told. measured: what its output shows, None if it shows nothing.
    correlations: of output and noise, by timestep; NaN where the output was no number.
    """

    told: Told
    measured: PredictionType | None
    correlations: Mapping[int, float]

    @property
    def type(self) -> str:
        """What it is taken to predict."""
        return self.told.type or self.measured or "epsilon"

    @property
    def note(self) -> str | None:
        """What a person should know, in one line; None where told and measured agree."""
        if self.told.type and self.measured:
            return None
        if self.measured:
            how = f"measured ({self._evidence})"
            return f"nothing says whether the model predicts epsilon or v: {_WORDS[self.type]}, as {how}"
        shown = f"its output shows neither ({self._evidence}; an untrained or unusual model?)"
        if self.told.type:
            said = f"{self.told.by} says that the model predicts {_WORDS[self.type]}"
            return f"{said}, which could not be checked: {shown}"
        return (
            f"nothing says whether the model predicts epsilon or v, and {shown}: taken as epsilon; for "
            f"a v model give {option('prediction_type')} v"
        )

    @property
    def _evidence(self) -> str:
        pairs = (f"{value:.2f} at timestep {t}" for t, value in self.correlations.items())
        return f"correlation of output and noise {', '.join(pairs)}"

    def check(self, path: "Path") -> None:
        """Raise CheckpointError, of `path`, if what is told contradicts what was measured."""
        if self.told.type and self.measured and self.told.type != self.measured:
            told, found = _WORDS[self.told.type], _WORDS[self.measured]
            how = "nearly the noise it is given" if found == "epsilon" else "hardly any of its noise"
            raise CheckpointError(
                f"{path}: {self.told.by} says that the model predicts {told}, but it predicts {found}: "
                f"its output is {how} ({self._evidence}); correct that, or give "
                f"{option('prediction_type')} {found.removesuffix('_prediction')}"
            )

    def as_json(self) -> dict[str, Any]:
        """As plain JSON: the type, by whom it is told or None, what was measured, correlations."""
        return {
            "type": self.type,
            "told_by": rendered(self.told.by) or None,
            "measured": self.measured,
            "correlations": {
                str(t): None if value != value else round(value, 2)
                for t, value in self.correlations.items()
            },
        }


@torch.no_grad()
def measure(model: "LoadedModel", told: Told) -> Prediction:
    """What a denoiser's output shows of what it predicts; one sample, or two.

    The empty prompt, one fixed noise epsilon `[c, h, w]`, and as input sqrt(1 - alpha-bar) of it: a grey
    picture. What overflows in half precision is computed again in fp32.
    """
    text, pooled = model.encode_pooled([""])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *model.latent_shape, generator=generator, dtype=torch.float32)
    last = len(model.alphas_cumprod) - 1
    found: dict[int, float] = {}
    measured: PredictionType | None = None
    for timestep in (last, last // 4):
        alpha = float(model.alphas_cumprod[timestep])
        latents = (1 - alpha) ** 0.5 * noise
        output = model.output(latents, timestep, text, pooled)
        if not output.isfinite().all():
            with model.exact() as exact:
                exact_pooled = None if pooled is None else pooled.float()
                output = exact.output(latents, timestep, text.float(), exact_pooled)
        pair = torch.stack([output.cpu().float().flatten(), noise.flatten()])
        # Of an output that is the same everywhere there is no correlation: NaN, and so no answer.
        found[timestep] = float(torch.corrcoef(pair)[0, 1])
        if timestep == last and found[last] >= _IS_NOISE:
            measured = "epsilon"
            break
        if timestep < last and abs(found[last]) <= _IS_NO_NOISE and found[timestep] >= _TRAINED:
            measured = "v_prediction"
    return Prediction(told, measured, found)
