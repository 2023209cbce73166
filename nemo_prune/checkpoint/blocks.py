"""Where the UNet blocks that a single file numbers through lie in diffusers' UNet.

LDM numbers all input and all output blocks through; diffusers starts again at each resolution. A
downsampler is an input block of its own, an upsampler belongs to the last output block of its
resolution, so blocks of any lengths are distinguished.
"""

import re
from collections.abc import Iterable, Iterator

_NUMBER = r"(0|[1-9]\d{0,3})"
VALUE_END = rf"transformer_blocks\.{_NUMBER}\.attn2\.to_v\.weight"
_VALUE = re.compile(rf"(?:(in|out)put_blocks\.{_NUMBER}|middle_block)\.1\.{VALUE_END}")
_DOWNSAMPLER = re.compile(rf"input_blocks\.{_NUMBER}\.0\.op\.weight")
_UPSAMPLER = re.compile(rf"output_blocks\.{_NUMBER}\.\d\.conv\.weight")
DIFFUSERS_VALUE = re.compile(
    rf"(?:(?:down|up)_blocks\.{_NUMBER}\.attentions\.{_NUMBER}|mid_block\.attentions\.0)\.{VALUE_END}"
)
PIXART_VALUE = re.compile(VALUE_END)
"""Of a transformer whose blocks are numbered through."""


# torch's around modules that are compiled, recompute their activations or are sharded.
_WITHIN = re.compile(r"(?:\._(?:orig_mod|checkpoint_wrapped_module|fsdp_wrapped_module))+(?=\.)")


def plain_name(name: str, wrapper: str = "") -> str:
    """A tensor's name without what programs put around modules.

    wrapper: what stands before all names of the file (`module.`, `unet.`, ...). torch's own
        (`_orig_mod.`, ...) may stand anywhere, since parts of a model can be compiled or wrapped.
    """
    return _WITHIN.sub("", f".{name.removeprefix(wrapper)}")[1:]


class Blocks:
    """The blocks of an LDM UNet, from its tensors' names without the prefix."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._downs = self._numbers(_DOWNSAMPLER)
        self._ups = self._numbers(_UPSAMPLER)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        return sorted(int(match[1]) for name in self.names if (match := pattern.fullmatch(name)))

    def down(self, number: int) -> tuple[int, int]:
        """(block, place in it) in diffusers of an input block, which count from 1 here."""
        before = [0, *(d for d in self._downs if d < number)]
        return len(before) - 1, number - before[-1] - 1

    def up(self, number: int) -> tuple[int, int]:
        """(block, place in it) in diffusers of an output block."""
        before = [-1, *(u for u in self._ups if u < number)]
        return len(before) - 1, number - before[-1] - 1

    def values(self) -> Iterator[tuple[str, str]]:
        """(canonical layer name, name here) of each cross-attention value layer."""
        for name in self.names:
            match = _VALUE.fullmatch(name)
            if not match:
                continue
            way, number, depth = match.groups()
            if way is None:
                place = "mid_block.attentions.0"
            else:
                block, layer = self.down(int(number)) if way == "in" else self.up(int(number))
                place = f"{'down' if way == 'in' else 'up'}_blocks.{block}.attentions.{layer}"
            yield f"{place}.transformer_blocks.{depth}.attn2.to_v", name
