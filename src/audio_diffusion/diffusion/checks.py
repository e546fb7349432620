"""Checks of arguments."""


def check_at_least_one(**values: int | None) -> None:
    """Checks that numbers are at least 1; None is accepted.

    Raises:
        ValueError: if one is not; the message names the first such argument.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
