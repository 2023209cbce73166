"""A training stage that can be killed at any step and goes on where it stopped, to the same end."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Tensor]
Draw = Callable[[random.Random, torch.Generator], Batch]


class _Batches(Dataset[Batch]):
    """Step -> batch; all its randomness comes from (seed, stage, step)."""

    def __init__(self, draw: Draw, seed: int, name: str, steps: int) -> None:
        self.draw, self.seed, self.name, self.steps = draw, seed, name, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        chance = random.Random(f"{self.seed} {self.name} {step}")
        return self.draw(chance, torch.Generator().manual_seed(chance.getrandbits(60)))


class Stage:
    """One named stage: a module, AdamW, a learning rate falling to 3 %, an EMA of the weights.

    Every step draws its randomness from (seed, stage, step) alone, so a resumed run sees the same
    batches as an unbroken one. State is kept in `folder/NAME.pt`, written every `save_every` steps.
    On a GPU a step is captured once and replayed: in models this small, starting the kernels one
    by one takes longer than running them.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        folder: Path,
        *,
        steps: int,
        rate: float,
        seed: int,
        ema: float = 0.998,
        save_every: int = 500,
        workers: int = 0,
    ) -> None:
        self.name, self.module, self.steps, self.rate, self.seed = name, module, steps, rate, seed
        self.ema_decay, self.save_every, self.workers = ema, save_every, workers
        self.path = folder / f"{name}.pt"
        self.log = folder / f"{name}.jsonl"
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=1e-4, fused=True)
        self.ema = [p.detach().clone() for p in self.trained]
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=self.device)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema, self.step = state["ema"], state["step"]

    def _save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def _gradients(self, loss_of: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        """The function that turns a batch into its loss and every parameter's gradient."""

        def backward(batch: Batch) -> Tensor:
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            return loss.detach()

        if self.device.type != "cuda":
            return backward
        graph, place, result = torch.cuda.CUDAGraph(), {}, None

        def replayed(batch: Batch) -> Tensor:
            nonlocal result
            if result is None:
                place.update({key: value.clone() for key, value in batch.items()})
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    for _ in range(
                        3
                    ):  # what libraries choose and allocate at first must not be captured
                        backward(place)
                        self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(graph):
                    result = backward(place)
            for key, value in batch.items():
                place[key].copy_(value)
            graph.replay()
            return result

        return replayed

    def run(self, draw: Draw, loss_of: Callable[[Batch], Tensor]) -> dict[str, Any]:
        """Train to the last step, then leave the averaged weights in the module.

        Args:
            draw: makes a batch of CPU tensors, always of the same shapes.
            loss_of: a batch on the module's device to its loss; deterministic.

        Returns:
            The last line of the log: step, mean loss and seconds a step.
        """
        self.module.train()
        batches = DataLoader(
            _Batches(draw, self.seed, self.name, self.steps),
            batch_size=None,
            sampler=range(self.step, self.steps),
            num_workers=self.workers,
        )
        gradients = self._gradients(loss_of)
        since, losses, line = time.monotonic(), [], {"step": self.step}
        for drawn in batches:
            rate = self.rate * (0.03 + 0.97 * (1 - self.step / self.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (self.step + 1) / 50)
            loss = gradients({key: value.to(self.device) for key, value in drawn.items()})
            losses.append(loss.clone())
            self.optimizer.step()
            if self.device.type != "cuda":
                self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.ema_decay, self.step / (self.step + 10))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - decay)
            if self.step % 50 == 0 or self.step == self.steps:
                mean = torch.stack(losses).mean().item()
                seconds = (time.monotonic() - since) / len(losses)
                line = {"step": self.step, "loss": round(mean, 5), "seconds": round(seconds, 4)}
                with self.log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                since, losses = time.monotonic(), []
            if self.step % self.save_every == 0 or self.step == self.steps:
                self._save()
        with torch.no_grad():
            for parameter, average in zip(self.trained, self.ema, strict=True):
                parameter.copy_(average)
        self.module.eval()
        return line
