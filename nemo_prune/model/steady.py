"""On a processor, a sample's noise to the last digit, whatever else is in its batch.

Two kinds of layers round otherwise in batches of other sizes: linear maps of one vector a sample (of the
timestep, of SDXL's pooled text) or of a few (where a latent is small), as a matrix product of few rows
is computed in another order; and convolutions of a single small picture, for which torch takes another
algorithm. Both are cheap, so they get a few more rows, or the picture twice. Everything else has many
rows a sample.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROWS = 8
_SMALL = 20480  # numbers in a picture; torch's use_mkldnn (aten/src/ATen/native/Convolution.cpp)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.ndim > 2 and input.shape[-2] >= _ROWS:
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        parts = []
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            padded = functional.pad(some, (0, 0, 0, _ROWS - len(some)))
            parts.append(super().forward(padded)[: len(some)])
        return torch.cat(parts).reshape(*input.shape[:-1], self.out_features)


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if len(input) != 1 or input.numel() > _SMALL:
            return super().forward(input)
        return super().forward(torch.cat([input, input]))[:1]


_STEADY: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


def make_steady(denoiser: nn.Module) -> None:
    """Make a denoiser in fp32 on the CPU give each sample the same noise in any batch."""
    for module in denoiser.modules():
        module.__class__ = _STEADY.get(type(module), type(module))
