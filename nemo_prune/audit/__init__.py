"""Attempts to bring back what was pruned: other words, more pictures, and what came of each."""
