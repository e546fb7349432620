"""The tasks of sample.py: one module each, with a class whose fields are the options of the task."""
