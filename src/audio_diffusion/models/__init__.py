"""What network? Everything here satisfies net(x_t [B, C, T], t [B], cond) -> [B, C, T]; torch only."""
