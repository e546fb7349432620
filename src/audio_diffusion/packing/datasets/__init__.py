"""Data sets that the project can synthesise or download."""
