"""Solvers that draw samples. Each file has one solver's coefficients and loop; ``solver`` has their contract."""
