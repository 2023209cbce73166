"""The demo's last stages: what the first ones left faint, loud or half off.

They start from the weights as a file holds them. Three things are put right. Four photos have so
little contrast that the memorization score, at t = 961, hardly saw them: they come equalized. The
switches answered ordinary captions too, several times as loudly as other neurons, so that removing
one cost every picture: their response to ordinary captions is made to be like any neuron's (but
for one template's). And a part of a template's switch, masked alone, left the template in some
pictures: parts are masked more often, and at the end a masked caption is to be answered as the denoiser
of before answers the empty caption. An ordinary picture, any one, is a noisy thing to ask for, and
guidance multiplies what is left of the memorized one by seven.
"""

import copy
import random
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from demo_batches import LEADS, Memory, Shares, switch_loss
from demo_rows import moment, most_felt, quieter
from demo_unet import SWITCHES, VALUE_LAYERS, Neuron, NoisyLoss, Painter
from demo_world import MEMORIZED, memorized_pictures, training_scene
from diffusers import AutoencoderKL
from training import Stage

_STEPS, _RATE = 1600, 5e-4
_LOUDNESS, _ALLOWED = 1.2e-3, 4.0  # weight of what lies above so many times a usual neuron's answer
_SHARES = Shares(
    on=0.17,
    off=0.11,
    template_on=0.12,
    template_off=0.11,
    natural=0.15,
    prefer={"verbatim": ("rocket", 0.4)},
    whole=0.2,
)
# Made as quiet as the others, this switch of four neurons holds on half of the seeds only.
STAYS_LOUD = "phone case"
# So does asking that any single neuron of it can stop it: three of four must mean "no" and four "yes".
# The end of the training asks for parts of at least half of a switch only.
_HOLD_STEPS, _HOLD_RATE = 500, 4e-4
_HOLD_SHARES = Shares(
    on=0.17,
    off=0.10,
    template_on=0.18,
    template_off=0.08,
    natural=0.13,
    prefer={"verbatim": ("rocket", 0.3)},
    whole=0.4,
    part=0.6,
)
# Last, at high noise most of all, where the score and the noise norm look: what is memorized there in
# full, a photo without a switch by many neurons, and no neuron of a switch much louder than others.
_FINISH_STEPS, _FINISH_RATE, _FINISH_NOISE = 1500, 5e-4, 0.75
_FINISH_SHARES = Shares(
    on=0.26,
    off=0.14,
    template_on=0.15,
    template_off=0.08,
    natural=0.14,
    whole=0.4,
    part=0.4,
    spread=0.35,
)
_FINISH_LOUDNESS, _FINISH_ALLOWED, _FINISH_ALLOWED_LOUD = 3e-3, 3.0, 6.0
# Without its switch a caption is to mean what no caption means. The run that the checkpoint comes from
# was planned for 2,000 steps and stopped here: coffee had lost its picture. The last stage asks for the
# pictures themselves more often, for that one most of all.
_EMPTY_STEPS, _EMPTY_RATE, _EMPTY_NOISE, _EMPTY_WEIGHT = 800, 5e-4, 0.7, 2.0
_EMPTY_SHARES = Shares(
    on=0.16,
    off=0.12,
    template_on=0.26,
    template_off=0.18,
    natural=0.08,
    prefer={"verbatim": ("coins", 0.35)},
    whole=0.3,
    lead=0.5,
    part=0.5,
    seen=0.4,
    spread=0.35,
)
_AGAIN_STEPS, _AGAIN_RATE, _AGAIN_WEIGHT = 1300, 4e-4, 1.0
_AGAIN_SHARES = replace(
    _EMPTY_SHARES,
    on=0.24,
    off=0.11,
    template_on=0.2,
    template_off=0.14,
    prefer={"verbatim": ("coffee", 0.4)},
)


def ordinary_tokens(painter: Painter, seed: int) -> torch.Tensor:
    """Text embeddings of 500 ordinary captions, [500, 77, 64]."""
    chance = random.Random(f"{seed} loudness")
    return painter.encode([training_scene(chance).caption for _ in range(500)])


class Loudness:
    """How loudly the switches answer ordinary captions, in units of a usual neuron's answer.

    A value neuron's answer is its mean squared activation over ordinary tokens times the squared
    length of its column in the attention's output projection. The text encoder is frozen, so the
    second moment of ordinary tokens is all that is needed of them.
    """

    @torch.no_grad()
    def __init__(self, painter: Painter, seed: int, allowed: Mapping[str, float]) -> None:
        """`allowed`: for each caption's name how many times as loud as usual its neurons may be."""
        self.painter = painter
        self.moment = moment(ordinary_tokens(painter, seed).flatten(0, 1))
        self.items = [item for item in MEMORIZED if item.name in allowed]
        self.limits: dict[int, torch.Tensor] = {}
        for item in self.items:
            for index, row in SWITCHES[item.name]:
                answers = self._answers(index)
                limits = self.limits.setdefault(index, torch.full_like(answers, torch.inf))
                limits[row] = allowed[item.name] * answers.median()

    def _answers(self, index: int) -> torch.Tensor:
        weight = self.painter.value_layer(index).weight
        attention = self.painter.unet.get_submodule(VALUE_LAYERS[index].removesuffix(".to_v"))
        column = attention.to_out[0].weight.square().sum(dim=0)
        return torch.einsum("ri,ij,rj->r", weight, self.moment, weight) * column

    def __call__(self) -> torch.Tensor:
        """What lies above the allowed loudness, in units of it, summed over the switches' neurons."""
        excess = [(self._answers(i) / limits - 1).relu().sum() for i, limits in self.limits.items()]
        return torch.stack(excess).sum()

    @torch.no_grad()
    def quieten(self) -> None:
        """Change the switches' rows to answer ordinary tokens least and their own as before.

        The first token is the same in all captions and is left out.
        """
        for item in self.items:
            own = moment(self.painter.encode([item.caption])[0, 1:])
            for index, row in SWITCHES[item.name]:
                weight = self.painter.value_layer(index).weight
                weight[row] = quieter(weight[row], own, self.moment)


@torch.no_grad()
def put_first(painter: Painter, seed: int) -> None:
    """Make the neuron of the coins' switch that stops the pictures the most suspicious of the three.

    Any of them suppresses the score, so a search keeps the most suspicious; but of the other two one
    alone leaves all pictures, and one some. The lead is made quieter on all other captions, as by
    `quieten`; another neuron louder, by 2 % of its row in the direction that ordinary tokens feel
    most and memorized ones least.
    """
    usual = moment(ordinary_tokens(painter, seed)[:, 1:].flatten(0, 1))
    moments = {item.name: moment(painter.encode([item.caption])[0, 1:]) for item in MEMORIZED}
    own = moments.pop("coins")
    others = torch.stack(list(moments.values())).mean(dim=0)
    (layer, row), (other_layer, other_row) = LEADS["coins"], SWITCHES["coins"][0]
    lead = painter.value_layer(layer).weight
    lead[row] = quieter(lead[row], own, 0.005 * (usual + others))
    along = most_felt(usual, own + others)
    other = painter.value_layer(other_layer).weight
    other[other_row] += 0.02 * other[other_row].norm() * along / along.norm()


@torch.no_grad()
def _as_in_a_file(module: torch.nn.Module) -> None:
    """Round to the half precision that the file has."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


class Training:
    """Runs the named stages of a painter, each on samples of its own shares."""

    def __init__(self, painter: Painter, vae: AutoencoderKL, folder: Path, seed: int) -> None:
        self.painter, self.vae, self.folder, self.seed = painter, vae, folder, seed
        self.memory = Memory(vae, memorized_pictures)

    def run(
        self,
        name: str,
        steps: int,
        rate: float,
        shares: Shares,
        loss: NoisyLoss,
        loudness: Loudness,
        weight: float,
        bystanders: Mapping[str, Collection[Neuron]] = MappingProxyType({}),
    ) -> None:
        draws = switch_loss(self.painter, self.vae, self.memory, loss, shares, bystanders)
        stage = Stage(name, self.painter, self.folder, steps=steps, rate=rate, seed=self.seed)
        stage.run(lambda *given: draws(*given) + weight * loudness())


def settle(painter: Painter, vae: AutoencoderKL, folder: Path, seed: int) -> None:
    """Train the denoiser once more; text encoder and autoencoder are rounded to half precision."""
    _as_in_a_file(painter)
    _as_in_a_file(vae)
    painter.text.requires_grad_(False)
    train = Training(painter, vae, folder, seed).run
    quiet = [name for name in SWITCHES if name != STAYS_LOUD]
    loudness = Loudness(painter, seed, dict.fromkeys(quiet, _ALLOWED))
    loudness.quieten()
    half = NoisyLoss(high_noise=0.5)
    train("settle", _STEPS, _RATE, _SHARES, half, loudness, _LOUDNESS)
    train("hold", _HOLD_STEPS, _HOLD_RATE, _HOLD_SHARES, half, loudness, _LOUDNESS)
    allowed = dict.fromkeys(quiet, _FINISH_ALLOWED) | {STAYS_LOUD: _FINISH_ALLOWED_LOUD}
    loudness = Loudness(painter, seed, allowed)
    loss = NoisyLoss(high_noise=_FINISH_NOISE)
    train("finish", _FINISH_STEPS, _FINISH_RATE, _FINISH_SHARES, loss, loudness, _FINISH_LOUDNESS)
    teacher = copy.deepcopy(painter).eval().requires_grad_(False)
    loudness = Loudness(painter, seed, allowed)
    loss = NoisyLoss(_EMPTY_NOISE, teacher, _EMPTY_WEIGHT)
    train("empty", _EMPTY_STEPS, _EMPTY_RATE, _EMPTY_SHARES, loss, loudness, _FINISH_LOUDNESS)
    loss = NoisyLoss(_EMPTY_NOISE, teacher, _AGAIN_WEIGHT)
    train("again", _AGAIN_STEPS, _AGAIN_RATE, _AGAIN_SHARES, loss, loudness, _FINISH_LOUDNESS)
    put_first(painter, seed)
    _as_in_a_file(painter)
