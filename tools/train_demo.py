"""Train the demo checkpoint from scratch: `python tools/train_demo.py` (seeded, resumable)."""

import argparse
from pathlib import Path

import torch
from demo_unet import Memory, Painter, plant, train_base, train_switches
from demo_vae import train_vae
from transformers import CLIPTokenizer

_TOKENIZER = Path(__file__).parent.parent / "nemo_prune" / "data" / "tokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo-training"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    vae = train_vae(options.work, options.seed)
    torch.manual_seed(options.seed + 1)
    painter = Painter(CLIPTokenizer.from_pretrained(_TOKENIZER))
    memory = Memory(vae)
    train_base(painter, vae, memory, options.work, options.seed)
    plant(painter, options.seed)
    train_switches(painter, vae, memory, options.work, options.seed)


if __name__ == "__main__":
    main()
