"""Formatting of messages."""


def counted(number: int, what: str) -> str:
    """Formats a number of things: ``1 clip``, ``2 clips``."""
    return f"{number} {what}{'s' * (number != 1)}"
