"""What every test needs: the scripts in `tools/` as modules, and one thread for equal rounding."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

torch.set_num_threads(1)
