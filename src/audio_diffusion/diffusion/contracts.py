"""Whether an object has what a contract asks for: parts may come from any package."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple


class Member(NamedTuple):
    """One member of a contract.

    written: how it is declared, for the message: ``encode(audio: Tensor) -> Tensor``.
    kind: the type of an attribute; None for a method.
    arguments: number of arguments that a method is called with.
    """

    written: str
    kind: type | None = None
    arguments: int = 0


def check(part: object, contract: str, members: Mapping[str, Member]) -> None:
    """Refuses an object that lacks a member of a contract, or has one that cannot be used as the contract says.

    Args:
        part: the object.
        contract: its name, such as "Network", and where it is written down.
        members: by name; "__call__" or "forward" is what the object does when it is called.

    Raises:
        ValueError: naming the class, the member and the declaration that is expected.
    """
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    for member, expected in members.items():
        if not hasattr(part, member):
            raise ValueError(f"{name} has no {member!r}: a {contract} needs {expected.written}")
        value = getattr(part, member)
        if expected.kind is not None:
            if not isinstance(value, expected.kind) or isinstance(value, bool) != (expected.kind is bool):
                raise ValueError(f"{name}.{member}: a {contract} needs {expected.written}, got {value!r}")
        elif not _takes(value, expected.arguments):
            raise ValueError(f"{name}.{member}{_signature(value)}: a {contract} needs {expected.written}")


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return ""


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments by place."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of a builtin that does not tell
        return True
    return True
