"""Editing with any sampler: constraints, long signals, variations, interpolation, restoration."""
