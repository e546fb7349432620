"""What is the maths? Schedules, parameterization, process, samplers and guidance: torch only."""
