"""What a network can be conditioned on: labels, numbers, embeddings, captions, mel spectrograms."""

#: fields of every batch; other fields are read from the clips if a condition needs them
IN_EVERY_BATCH = ("audio", "label", "seconds_start", "seconds_total")
