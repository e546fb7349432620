"""What is the maths? Schedules, parameterization, process, guidance, solvers: torch only."""
