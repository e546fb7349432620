"""Where do batches come from? Folders of audio, WebDataset shards, the stream, the DataModule."""
