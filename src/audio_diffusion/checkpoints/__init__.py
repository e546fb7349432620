"""Files that survive: atomic writes, manifests, locks, checkpoints of one process and of many, signals."""
