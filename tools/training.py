"""A training stage that can be killed at any step and goes on where it stopped, to the same end."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


class Stage:
    """One named stage: a module, AdamW, a learning rate falling to 3 %, an EMA of the weights.

    Every step draws its randomness from (seed, stage, step) alone, so a resumed run sees the same
    batches as an unbroken one. State is kept in `folder/NAME.pt`, written every `save_every` steps.
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
        save_every: int = 200,
    ) -> None:
        self.name, self.module, self.steps, self.rate, self.seed = name, module, steps, rate, seed
        self.ema_decay, self.save_every = ema, save_every
        self.path = folder / f"{name}.pt"
        self.log = folder / f"{name}.jsonl"
        trained = [p for p in module.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-4, fused=True)
        self.ema = [p.detach().clone() for p in trained]
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
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

    def run(self, loss_of: Callable[[int, random.Random, torch.Generator], torch.Tensor]) -> None:
        """Train to the last step, then leave the averaged weights in the module."""
        self.module.train()
        since, total, counted = time.monotonic(), 0.0, 0
        while self.step < self.steps:
            chance = random.Random(f"{self.seed} {self.name} {self.step}")
            noise = torch.Generator().manual_seed(chance.getrandbits(60))
            rate = self.rate * (0.03 + 0.97 * (1 - self.step / self.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (self.step + 1) / 50)
            loss = loss_of(self.step, chance, noise)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.ema_decay, self.step / (self.step + 10))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - decay)
            total, counted = total + loss.item(), counted + 1
            if self.step % 50 == 0:
                per_step = (time.monotonic() - since) / counted
                line = {"step": self.step, "loss": round(total / counted, 5)}
                with self.log.open("a") as file:
                    file.write(json.dumps(line | {"seconds": round(per_step, 3)}) + "\n")
                since, total, counted = time.monotonic(), 0.0, 0
            if self.step % self.save_every == 0 or self.step == self.steps:
                self._save()
        with torch.no_grad():
            for parameter, average in zip(self.trained, self.ema, strict=True):
                parameter.copy_(average)
        self.module.eval()
