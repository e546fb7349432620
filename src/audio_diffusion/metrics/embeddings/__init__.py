"""What does it sound like? Audio as vectors, one for each window."""
