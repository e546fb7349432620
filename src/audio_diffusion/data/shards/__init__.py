"""WebDataset shards: which there are, their index, and their members."""
