"""Memory and time of an attribution's backward pass on a full-size Stable Diffusion of random weights.

    python -m benchmarks.backward [--family sd1]

One prompt, one seed, one of the attribution's points, fp32 unless a GPU is there. Prints the peak memory
of the process (of tensors on CUDA) after loading, after a forward pass and after the attribution, which
computes activations again on the way back.
"""

import argparse
import json
import time
from typing import Any

from benchmarks.random_models import random_model, random_prompts
from nemo_prune.model.devices import pick_device, pick_dtype
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.memory import peak_memory, reset_peak_memory
from nemo_prune.search.protocol import Attribute


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backward", description=__doc__)
    parser.add_argument("--family", choices=["sd1", "sd2", "sdxl"], default="sd1")
    family = parser.parse_args().family
    device = pick_device("auto")
    model = random_model(family, device, pick_dtype(device, "auto"))
    engine = Engine(model, timestep=961, batch_size=1)
    (prompt,) = random_prompts(model, 1)
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
    wanted = Attribute((0,), points=(0.5,))
    job: Job = Job(prompt, iter(()), dict(enumerate(baseline)), layers=list(model.value_layers))  # type: ignore[arg-type]
    measured("attribution", lambda: engine.attribution(job, wanted))
    figures["cost"] = {"forward": engine.cost.forward, "backward": engine.cost.backward}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
