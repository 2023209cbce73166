"""nemo-prune: find and zero the value neurons behind memorized pictures in Stable Diffusion files."""

__version__ = "0.1.0"
