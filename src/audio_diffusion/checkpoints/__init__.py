"""Durable files: atomic writes, manifests, locks, plain and sharded checkpoints, and the handling of signals."""
