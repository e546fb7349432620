"""Distances between embeddings of generated and real clips, each with a confidence interval and a floor."""
