"""nemo-prune: find and zero the value neurons behind memorized pictures in Stable Diffusion."""

__version__ = "0.1.0"
