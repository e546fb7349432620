"""WebDataset shards: finding them, their indexes, and their members."""
