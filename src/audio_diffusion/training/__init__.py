"""How is it trained? The LightningModule, EMA weights, optimizer and learning rate."""
