"""Representations: conversions between audio [B, C, T] and x0 [B, D, L], the signal that is diffused."""
