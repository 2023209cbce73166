"""Memorization scores: similarity, the engine, thresholds, calibration, detection."""
