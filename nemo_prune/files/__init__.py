"""Bytes: safetensors headers, copying, placing, hashing, comparing, small text files; no torch, no neurons."""
