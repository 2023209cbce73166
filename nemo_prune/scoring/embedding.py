"""A text embedding optimized towards a picture: the strongest prompt there is for a model.

    for steps, prompt in pursue(engine, start, clean, Recipe(), seed=0):
        ...                                 # the embedding after 0, 10, 25, ... steps

Words are few; between them lie embeddings that no words have, and one of them may bring back a picture
that pruning took from every prompt ("Finding DoRI", arXiv 2507.16880, as published there). Given enough
steps an embedding can draw pictures that the model never saw. So how many steps a picture takes means
something beside how many others take, and nothing alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.scoring.engine import Engine, Noised, Prompt, noise_seed


@dataclass(frozen=True)
class Recipe:
    """How an embedding is optimized: Adam on the squared error of the predicted noise.

    budgets: after how many steps it is looked at, rising. batch: noises and timesteps of a step, drawn
        afresh for each. rate: Adam's learning rate.
    """

    budgets: tuple[int, ...] = (0, 10, 25, 50, 100, 150)
    batch: int = 8
    rate: float = 0.1

    def samples(self, steps: int) -> int:
        """Denoiser samples that so many steps take; a backward pass counts as two."""
        return 3 * self.batch * steps


def pursue(
    engine: Engine,
    start: Prompt,
    clean: Tensor,
    recipe: Recipe,
    seed: int,
    off: frozenset[Neuron] = frozenset(),
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[tuple[int, Prompt]]:
    """The embedding after each of the recipe's budgets; stop asking and no further step is taken.

    Args:
        start: where it begins; what a denoiser takes beside it (a pooled embedding, a mask) stays.
        clean: the picture as the denoiser's latents, float32 `[c, h, w]`.
        seed: of the noises and timesteps.
        off: neurons that are off throughout.
    """
    lot = torch.Generator().manual_seed(noise_seed(engine.seed, seed))
    text = start.text.detach().float().clone()
    adam = torch.optim.Adam([text], lr=recipe.rate)
    trained, clean = len(engine.model.alphas_cumprod), clean.cpu()
    done = 0
    for budget in recipe.budgets:
        while done < budget:
            noise = torch.randn(recipe.batch, *clean.shape, generator=lot, dtype=torch.float32)
            timesteps = torch.randint(trained, (recipe.batch,), generator=lot, dtype=torch.long).tolist()
            prompt = replace(start, text=text.detach())
            samples = [
                Noised(prompt, off, clean, one, timestep)
                for one, timestep in zip(noise, timesteps, strict=True)
            ]
            found = engine.text_gradients(samples, advance)
            text.grad = torch.stack(found).mean(dim=0)
            adam.step()
            done += 1
        yield done, replace(start, text=text.clone())


def random_start(like: Prompt, engine: Engine, seed: int) -> Prompt:
    """An embedding of no words: normal numbers with the mean and spread of another one's."""
    lot = torch.Generator().manual_seed(noise_seed(engine.seed, seed))
    drawn = torch.randn(like.text.shape, generator=lot, dtype=torch.float32).to(like.text.device)
    text = like.text.float()
    return replace(like, text=(drawn * text.std() + text.mean()).to(like.text.dtype))
