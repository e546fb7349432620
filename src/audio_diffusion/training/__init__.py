"""Training: the LightningModule, EMA weights, optimizer, learning rate, precision and FSDP."""
