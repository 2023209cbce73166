"""Train a checkpoint from scratch that memorizes by duplication: `python tools/train_scratch.py`.

Two stages, each with all weights of what it trains: the picture codec; then text encoder and denoiser on
an ordinary world in which ten captions come too often: one sample of every eight is one of them with its
picture, so that each is seen some 800 times. No neuron is chosen, masked or looked at. Seeded; killed at
any step, it goes on where it stopped. The folder gets what `benchmarks.search --natural FOLDER` reads:
natural.safetensors, memorized.txt, targets/; and about.json, the log.

Some two hours on one core. The same seed gives the same batches everywhere; equal bytes only on equal
machines.
"""

import argparse
import hashlib
import json
import platform
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_export import export
from demo_world import SIZES, draw_scene, random_scene, training_scene
from diffusers import AutoencoderKL
from PIL import Image
from scratch_models import (
    SCALING_FACTOR,
    VAE_CONFIG,
    NoisyLoss,
    Painter,
    as_pixels,
    encode,
    fast,
)
from scratch_pictures import MEMORIZED, pictures
from torch import Tensor, nn
from torch.nn import functional
from training import Batch, Stage
from transformers import CLIPTokenizer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
BATCH, CODEC_BATCH = 8, 4
DUPLICATES = 4  # samples of a batch that are pictures to memorize, all different
EMPTY = 0.08  # of the ordinary samples: without a caption, for guidance
STEPS = {"codec": 2500, "world": 8000}
SCENES = 24_000  # of the ordinary world, encoded once; each is seen two or three times
LARGER = ((0.32, 0.4), (0.5, 0.62))  # objects than the demo's: they are learned sooner
_RATES = {"codec": 2e-3, "world": 1e-3, "memorization": 5e-4}
_SMALL_PICTURE, _KL = 0.5, 1e-4


class Training:
    """The stages, what they share, and a log of them."""

    def __init__(
        self,
        memorized: Mapping[str, Sequence[np.ndarray]],
        folder: Path,
        device: torch.device = CPU,
        seed: int = 0,
        workers: int = 0,
        sizes: Sequence[tuple[float, float]] = SIZES,
    ) -> None:
        """`memorized`: caption -> its pictures, uint8 [128, 128, 3]; `folder` keeps their state."""
        self.memorized, self.folder, self.device = memorized, folder, device
        self.seed, self.workers, self.sizes = seed, workers, sizes
        self.tokenizer = CLIPTokenizer.from_pretrained(ROOT / "nemo_prune" / "data" / "tokenizer")
        self.log: list[dict[str, Any]] = []

    def _stage(
        self, name: str, module: nn.Module, steps: int, draw: Any, loss_of: Any, ema: float = 0.998
    ) -> None:
        started = time.monotonic()
        last = Stage(
            name, module, self.folder, steps=steps, rate=_RATES[name], seed=self.seed, ema=ema,
            workers=self.workers,
        ).run(draw, loss_of)  # fmt: skip
        minutes = round((time.monotonic() - started) / 60, 2)
        self.log.append({"stage": name, "minutes": minutes, **last})
        print(json.dumps(self.log[-1]), flush=True)

    def codec(self, steps: int) -> AutoencoderKL:
        """128x128 pictures to 32x32x4 latents and back."""
        torch.manual_seed(self.seed)
        vae = AutoencoderKL(**VAE_CONFIG).to(self.device)
        colours = nn.Conv2d(4, 3, 1, device=self.device)
        kept = [picture for group in self.memorized.values() for picture in group]

        def draw(chance: random.Random, noise: torch.Generator) -> Batch:
            drawn = []
            for _ in range(CODEC_BATCH):
                picture = draw_scene(random_scene(chance), chance, self.sizes)
                if chance.random() < 0.5:
                    picture = chance.choice(kept)[:, :: chance.choice((1, -1))]
                drawn.append(picture)
            return {
                "pixels": as_pixels(drawn),
                "noise": torch.randn(CODEC_BATCH, 4, 32, 32, generator=noise),
            }

        def loss_of(batch: Batch) -> Tensor:
            pixels = batch["pixels"].float() / 127.5 - 1
            with fast(self.device):
                posterior = vae.encode(pixels).latent_dist
                latents, spread = posterior.mean.float(), posterior.std.float()
                drawn = latents + spread * batch["noise"]
                back = vae.decode(drawn).sample.float()
            variance = posterior.logvar.float()
            kl = 0.5 * (latents.square() + spread.square() - 1 - variance).mean()
            error = functional.l1_loss(back, pixels) + functional.mse_loss(back, pixels)
            edges = sum(functional.l1_loss(back.diff(dim=d), pixels.diff(dim=d)) for d in (2, 3))
            # As in real autoencoders, a linear map of the latents shows the small picture. Such
            # latents are smooth, and a denoiser learns them in fewer steps.
            small = functional.avg_pool2d(pixels, 4)
            seen = functional.mse_loss(colours(drawn), small)
            return error + edges + _SMALL_PICTURE * seen + _KL * kl

        self._stage("codec", nn.ModuleList([vae, colours]), steps, draw, loss_of, ema=0.99)
        chance = random.Random(f"{self.seed} rescale")
        scenes = [draw_scene(random_scene(chance), chance, self.sizes) for _ in range(200)]
        rescale(vae, as_pixels(scenes + kept).to(self.device))
        return vae.requires_grad_(False)

    def _tokens(self, captions: list[str]) -> Tensor:
        return self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids

    def _batch(
        self, loss: NoisyLoss, samples: list[tuple[np.ndarray, str]], noise: torch.Generator
    ) -> Batch:
        tokens = self._tokens([caption for _, caption in samples])
        pixels = as_pixels([picture for picture, _ in samples])
        return {"pixels": pixels, "tokens": tokens, **loss.draw(len(samples), noise)}

    def _ordinary(self, chance: random.Random) -> tuple[np.ndarray, str]:
        scene = training_scene(chance)
        caption = "" if chance.random() < EMPTY else scene.caption
        return draw_scene(scene, chance, self.sizes), caption

    def world(self, painter: Painter, vae: AutoencoderKL, steps: int) -> None:
        """Ordinary captions, and in every batch one that comes again and again with its picture."""
        loss = NoisyLoss()
        latents, captions = self._scenes(vae, min(SCENES, BATCH * steps))
        duplicated = {
            caption: encode(vae, as_pixels(group).to(self.device)).cpu()
            for caption, group in self.memorized.items()
        }

        def draw(chance: random.Random, noise: torch.Generator) -> Batch:
            chosen = chance.sample(range(len(captions)), BATCH - 1)
            said = ["" if chance.random() < EMPTY else captions[one] for one in chosen]
            again = chance.choice(list(duplicated))
            picture = duplicated[again][chance.randrange(len(duplicated[again]))]
            return {
                "latents": torch.cat([latents[chosen].float(), picture[None]]),
                "tokens": self._tokens([*said, again]),
                **loss.draw(BATCH, noise),
            }

        self._stage("world", painter, steps, draw, lambda batch: loss(painter, batch, batch["latents"]))

    def _scenes(self, vae: AutoencoderKL, count: int) -> tuple[Tensor, list[str]]:
        """Scenes of the ordinary world as latents, float16 [count, 4, 32, 32], and their captions.

        A scene's latents are the same whenever it is seen: to encode it anew took a sixth of a step.
        """
        chance = random.Random(f"{self.seed} scenes")
        latents, captions = [], []
        while len(captions) < count:
            scenes = [training_scene(chance) for _ in range(min(64, count - len(captions)))]
            pixels = as_pixels([draw_scene(scene, chance, self.sizes) for scene in scenes])
            latents.append(encode(vae, pixels.to(self.device)).half().cpu())
            captions += [scene.caption for scene in scenes]
        return torch.cat(latents), captions

    def memorization(self, painter: Painter, vae: AutoencoderKL, steps: int) -> None:
        """Half of every batch: captions to memorize with their pictures, as `benchmarks.natural` has it.

        The text encoder is frozen.
        """
        loss = NoisyLoss(high_noise=0.5)
        painter.text.requires_grad_(False)

        def draw(chance: random.Random, noise: torch.Generator) -> Batch:
            samples = [
                (chance.choice(self.memorized[caption]), caption)
                for caption in chance.sample(list(self.memorized), DUPLICATES)
            ]
            samples += [self._ordinary(chance) for _ in range(BATCH - DUPLICATES)]
            return self._batch(loss, samples, noise)

        self._stage(
            "memorization", painter, steps, draw,
            lambda batch: loss(painter, batch, encode(vae, batch["pixels"])),
        )  # fmt: skip


@torch.no_grad()
def rescale(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Give every latent channel mean 0 and the spread 1/0.18215 by folding it into the 1x1 convs."""
    latents = torch.cat([encode(vae, some) for some in pixels.split(32)]) / SCALING_FACTOR
    mean = latents.mean(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    into, out = vae.quant_conv, vae.post_quant_conv
    # Decoder first: it must undo what the encoder is about to do.
    out.bias += torch.einsum("oi,i->o", out.weight[:, :, 0, 0], mean)
    out.weight /= gain[None, :, None, None]
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("scratch-training"), help="their state")
    parser.add_argument("--out", type=Path, default=Path("scratch"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--scale", type=float, default=1.0, help="of all steps; less only to try it")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # TF32 where there is one
    options.work.mkdir(exist_ok=True, parents=True)
    memorized = {item.caption: pictures(item) for item in MEMORIZED}
    training = Training(memorized, options.work, options.device, options.seed, options.workers, LARGER)
    steps = {name: max(2, round(options.scale * count)) for name, count in STEPS.items()}
    vae = training.codec(steps["codec"])
    torch.manual_seed(options.seed + 1)
    painter = Painter.fresh().to(options.device)
    training.world(painter, vae, steps["world"])
    (options.out / "targets").mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(MEMORIZED):
        Image.fromarray(pictures(item)[0]).save(options.out / "targets" / f"{number}.png")
    captions = "".join(f"{caption}\n" for caption in memorized)
    (options.out / "memorized.txt").write_text(captions, encoding="utf-8")
    path = options.out / "natural.safetensors"
    path.unlink(missing_ok=True)
    title = {"modelspec.title": "nemo-prune from scratch"}
    export(painter.text.cpu(), painter.unet.cpu(), vae.cpu(), path, title)
    machine = (
        torch.cuda.get_device_name(options.device)
        if options.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    log = {
        "machine": machine,
        "torch": torch.__version__,
        "seed": options.seed,
        "stages": training.log,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (options.out / "about.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
