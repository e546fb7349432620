"""Metrics of models and of generated audio."""
