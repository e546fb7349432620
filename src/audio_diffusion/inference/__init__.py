"""The Python API: a trained model that generates and edits; loading, exporting, the hub."""
