"""How far are generated clips from real ones? Distances of their embeddings, each with an interval and a floor."""
