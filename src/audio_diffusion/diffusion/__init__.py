"""The maths of diffusion: schedules, parameterization, process, guidance, solvers. It needs only torch."""
