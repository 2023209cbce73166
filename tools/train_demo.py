"""Train the demo checkpoint from scratch: `python tools/train_demo.py` (seeded, resumable).

About two hours on two idle cores: the picture codec, ordinary captions, the planted switches, and
what these left to put right; then the checkpoint, its lists, and what it does (MODEL_CARD.md).
"""

import argparse
from pathlib import Path

import torch
from demo_batches import Memory
from demo_data import write_data
from demo_evidence import write_evidence
from demo_export import export
from demo_finish import finish
from demo_settle import settle
from demo_switches import plant, train_base, train_switches
from demo_unet import Painter
from demo_vae import train_vae
from transformers import CLIPTokenizer

_ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=_ROOT / "nemo_prune" / "data" / "demo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    vae = train_vae(options.work, options.seed)
    torch.manual_seed(options.seed + 1)
    tokenizer = _ROOT / "nemo_prune" / "data" / "tokenizer"
    painter = Painter(CLIPTokenizer.from_pretrained(tokenizer))
    memory = Memory(vae)
    train_base(painter, vae, memory, options.work, options.seed)
    plant(painter, options.seed)
    train_switches(painter, vae, memory, options.work, options.seed)
    settle(painter, vae, options.work, options.seed)
    finish(painter, vae, options.work, options.seed)
    write_data(options.out, options.seed)
    path = options.out / "demo.safetensors"
    path.unlink(missing_ok=True)
    export(painter.text, painter.unet, vae, path, {})
    write_evidence(options.out)


if __name__ == "__main__":
    main()
