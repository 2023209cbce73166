"""Memory and time of an attribution's backward pass on a full-size Stable Diffusion 1 of random weights.

    python -m benchmarks.backward [--family sd1]

One prompt, one seed, one of the attribution's points, fp32 unless a GPU is there. Prints the peak memory
of the process (of tensors on CUDA) after loading, after a forward pass and after the attribution, which
computes activations again on the way back.
"""

import argparse
import json
import time
from typing import Any

import torch

from nemo_prune.model import hub
from nemo_prune.model.configs import data_folder
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.scoring import attribution
from nemo_prune.scoring.engine import Engine, Job, Prompt, Sample
from nemo_prune.scoring.memory import peak_memory, reset_peak_memory
from nemo_prune.search.protocol import Attribute


def random_model(family: str) -> LoadedModel:
    """A denoiser of the family's full size with random weights, and no text encoder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    config = json.loads((data_folder("configs", family) / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    unet = hub.UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    unet = unet.to(device, dtype, memory_format=torch.channels_last)
    side = config["sample_size"]
    layers = {n.removesuffix(".weight"): None for n, _ in unet.named_parameters() if ".attn2.to_v." in n}
    return LoadedModel(
        family=family,
        unet=unet,
        text_encoders=(),
        scheduler_config={},
        alphas_cumprod=torch.linspace(0.999, 0.005, 1000, device=device),
        prediction_type="epsilon",
        latent_shape=(4, side, side),
        value_layers={name: unet.get_submodule(name) for name in layers},
        device=device,
        dtype=dtype,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backward", description=__doc__)
    parser.add_argument("--family", choices=["sd1", "sd2"], default="sd1")
    family = parser.parse_args().family
    model = random_model(family)
    width = next(iter(model.value_layers.values())).in_features
    engine = Engine(model, timestep=961, batch_size=1)
    prompt = Prompt(torch.randn(77, width, device=model.device, dtype=model.dtype))
    figures: dict[str, Any] = {"family": family, "device": model.device.type, "dtype": model.precision}

    def measured(name: str, work: Any) -> Any:
        reset_peak_memory(model.device)
        began = time.monotonic()
        found = work()
        figures[name] = {
            "peak_gb": round(peak_memory(model.device) / 1e9, 2),
            "seconds": round(time.monotonic() - began, 1),
        }
        return found

    measured("loaded", lambda: None)
    baseline = measured(
        "forward", lambda: engine.evaluate([Sample(prompt, frozenset(), seed) for seed in (0, 1)])
    )
    attribution.POINTS = (0.5,)
    job = Job(prompt, iter(()), dict(enumerate(baseline)), layers=list(model.value_layers))
    measured("attribution", lambda: engine.attribution(job, Attribute((0,))))
    figures["cost"] = {"forward": engine.cost.forward, "backward": engine.cost.backward}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
