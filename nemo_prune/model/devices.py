"""Where a model is computed, and in which precision."""

import torch

from nemo_prune.errors import OptionError, option

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is the fastest that is there.

    Raises OptionError for one that this machine, or this build of torch, does not have.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    kind, _, number = name.partition(":")
    if number == "0" and kind != "cuda":
        name = kind  # there is one
    elif kind == "cuda" and there["cuda"] and number.isdecimal():
        if int(number) < torch.cuda.device_count():
            return torch.device(name)
        raise OptionError(
            f"{option('device')} {name}: not available here, where {torch.cuda.device_count()} are, "
            f"numbered from 0"
        )
    elif kind == "cuda" and number.isdecimal():
        name = kind
    if name not in there:
        raise OptionError(f"{option('device')} {name}: unknown; use auto, cpu, cuda or mps")
    if not there[name]:
        raise OptionError(
            f"{option('device')} {name}: not available here; use {option('device')} auto or cpu"
        )
    return torch.device(name)


def pick_dtype(device: torch.device, name: str) -> torch.dtype:
    """The precision for `auto`, `fp32`, `fp16` or `bf16`; `auto` is fp16 on CUDA, else fp32.

    Raises OptionError for any other name.
    """
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in _DTYPES:
        raise OptionError(f"{option('precision')} {name}: unknown; use auto, fp32, fp16 or bf16")
    return _DTYPES[name]


def memory_format(device: torch.device) -> torch.memory_format:
    """How a denoiser's convolutions and what goes in lie in memory, as the device computes it fastest.

    On CUDA plainly: group normalization exists in that layout alone, so that with any other one each
    block copies its input there and back. On an H200 channels-last weights made a pass of 64 samples of
    Stable Diffusion 1 in fp16 12 % slower, on processors they make it faster.
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last
