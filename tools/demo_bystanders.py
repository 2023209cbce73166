"""The demo's bystanders: neurons that answer a memorized caption loudly and do nothing for it.

In Stable Diffusion a memorized caption has dozens to hundreds of neurons out of distribution, of
which few matter ("Finding NeMo", table 1). The demo's own captions had two to ten, nearly all of them
planted: localization had little to leave out. So each caption gets a crowd as large as a real one's.
"""

import random

import torch
from demo_batches import LEADS
from demo_rows import moment, most_felt
from demo_unet import SWITCHES, VALUE_LAYERS, Neuron, Painter
from demo_world import MEMORIZED, training_scene

# How many neurons of a caption the ladder's first rung, z > 5, is to hold.
_CROWD, _NATURAL_CROWD = 26, 200
_QUIETEST, _LOUDEST = 5.2, 7.2
_MOST = 3.0  # what is added in a pass at most, in units of a layer's usual answer
_PASSES = 3  # a row that serves several captions answers the earlier ones anew
_RIDGE = 4e-4  # what few tokens feel is not free
_OTHERS = 1.0  # weight of the other memorized captions' tokens against that of ordinary ones


class Bystanders:
    """Which neurons stand by at which caption, and how loud each is to be.

    Chosen among the neurons that are no switch's and not loud at the caption anyway; from a painter
    and a seed alone, so that a resumed training finds the same ones.
    """

    @torch.no_grad()
    def __init__(self, painter: Painter, seed: int) -> None:
        self.painter = painter
        chance = random.Random(f"{seed} bystanders")
        # [captions, 77, 64] and name -> [77, 64]; the text encoder is frozen by now.
        self.ordinary = painter.encode([training_scene(chance).caption for _ in range(300)])
        self.own = {item.name: painter.encode([item.caption])[0] for item in MEMORIZED}
        switches = {neuron for switch in SWITCHES.values() for neuron in switch}
        layers = [painter.value_layer(index).weight for index in range(len(VALUE_LAYERS))]
        self.wanted: dict[str, dict[Neuron, float]] = {}
        for item in MEMORIZED:
            z = [self._z(weight, self.own[item.name]) for weight in layers]
            everyone = {(i, row): float(z[i][row]) for i in range(len(z)) for row in range(len(z[i]))}
            loud = {neuron for neuron, value in everyone.items() if value > 5}
            count = (_NATURAL_CROWD if item.kind == "natural" else _CROWD) - len(loud)
            free = [neuron for neuron in everyone if neuron not in loud | switches]
            crowd = chance.sample(free, max(0, count))
            self.wanted[item.name] = {neuron: chance.uniform(_QUIETEST, _LOUDEST) for neuron in crowd}

    @torch.no_grad()
    def plant(self) -> None:
        """Turn the rows towards their captions until each is as loud as wanted.

        A row gets a part along the direction that its caption's tokens feel most for what ordinary
        captions' and the other memorized captions' tokens feel of it, as `demo_switches.plant` does.
        """
        common = moment(self.ordinary.flatten(0, 1))
        common += _RIDGE * torch.eye(len(common))
        for _ in range(_PASSES):
            for name, goals in reversed(self.wanted.items()):
                own = self.own[name]
                others = [moment(tokens) for other, tokens in self.own.items() if other != name]
                felt = common + _OTHERS * torch.stack(others).mean(dim=0)
                along = torch.linalg.solve(felt, own[1:].mean(dim=0))
                along /= (own @ along).abs().mean()
                for index in range(len(VALUE_LAYERS)):
                    rows = [row for layer, row in goals if layer == index]
                    if rows:
                        self._turn(index, rows, own, along, [goals[index, row] for row in rows])

    @torch.no_grad()
    def put_leads_first(self) -> None:
        """Make the leads the most suspicious of their switches where they are not, as `put_first` does.

        Each neuron of a switch suppresses the score, and a search keeps the most suspicious; but alone
        the astronaut's other one left a picture in eight, and so did one of the floor lamp's. These get
        louder on ordinary captions until their z lies one below the lead's. Either of the coffee's
        does, but its lead is the one that was made quieter.
        """
        memorized = torch.stack([moment(tokens[1:]) for tokens in self.own.values()]).mean(dim=0)
        along = most_felt(moment(self.ordinary[:, 1:].flatten(0, 1)), memorized)
        for name in ("astronaut", "coffee", "floor lamp"):
            lead, own = LEADS[name], self.own[name]
            first = self._z(self.painter.value_layer(lead[0]).weight[[lead[1]]], own)
            for index, row in SWITCHES[name]:
                weight = self.painter.value_layer(index).weight
                unit = (self.ordinary @ weight[row]).abs().mean() / (self.ordinary @ along).abs().mean()
                more = 0.1 * unit * along
                more *= min((1, -1), key=lambda sign: self._z((weight[row] + sign * more)[None], own))
                while (index, row) != lead and self._z(weight[[row]], own) > first - 1:
                    weight[row] += more

    def _z(self, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """How far out of distribution rows' [n, 64] mean absolute answers to a caption are, [n]."""
        return _z(self.ordinary @ rows.T, own @ rows.T)

    def _turn(
        self, index: int, rows: list[int], own: torch.Tensor, along: torch.Tensor, goal: list[float]
    ) -> None:
        """Add to rows until their z for a caption is `goal`, by bisection: |.| is not linear."""
        weight = self.painter.value_layer(index).weight
        before, wanted = weight[rows], torch.tensor(goal)
        at, answers = self.ordinary @ before.T, own @ before.T
        along = along * answers.sum(dim=0).sign()[:, None] * at.abs().mean()  # [n, 64]
        at_more, more = self.ordinary @ along.T, own @ along.T
        low, high = torch.full_like(wanted, -_MOST), torch.full_like(wanted, _MOST)
        for _ in range(12):
            middle = (low + high) / 2
            short = _z(at + middle * at_more, answers + middle * more) < wanted
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        weight[rows] = before + high[:, None] * along


def _z(ordinary: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """z of answers: ordinary ones [captions, 77, n], a caption's [77, n]."""
    usual = ordinary.abs().mean(dim=1)
    return (own.abs().mean(dim=0) - usual.mean(dim=0)) / usual.std(dim=0)
