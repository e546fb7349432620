"""What a network can be conditioned on: labels, numbers, embeddings, captions, mel spectrograms."""

#: what every batch has; other fields are read from the clips where a condition asks for them
IN_EVERY_BATCH = ("audio", "label", "seconds_start", "seconds_total")
