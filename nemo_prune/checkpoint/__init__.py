"""Models on disk: families, value layers, manifests, and the operations on them; no torch."""
