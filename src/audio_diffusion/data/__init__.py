"""Data: audio files, WebDataset shards, the stream of clips, and the DataModule."""
