"""How is a sample drawn? One file a solver: its coefficients and its loop. ``solver`` has their contract."""
