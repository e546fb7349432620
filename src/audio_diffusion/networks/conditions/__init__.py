"""What a network can be conditioned on: labels, numbers, embeddings, captions, mel spectrograms."""
