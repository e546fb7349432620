"""Networks that predict from x_t, t and conditions, and the layers that they are made of."""
