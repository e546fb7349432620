"""What is diffused: between audio [B, C, T] and x0 [B, D, L]."""
