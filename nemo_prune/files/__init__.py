"""Bytes: safetensors headers, copying, hashing, comparing, small text files; no torch."""
