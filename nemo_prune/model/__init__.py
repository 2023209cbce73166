"""Loading a checkpoint with no network, and running its denoiser."""
