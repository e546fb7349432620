"""Callbacks: all side effects of a run, such as sampling, logging, checkpoints and reports."""
