"""The programs: configuration, commands, and results on disk."""
