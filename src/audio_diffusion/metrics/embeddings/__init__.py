"""Embeddings: audio as vectors, one for each window."""
