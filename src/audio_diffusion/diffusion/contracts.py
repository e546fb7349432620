"""Checks that an object, which may come from any package, has the members that a contract requires."""

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
    """Checks that an object has all members of a contract, and that they can be used as declared.

    Args:
        part: the object.
        contract: name of the contract, such as "Network", and the location of its documentation.
        members: members by name; "__call__" or "forward" is called when the object is called.

    Raises:
        ValueError: if not; the message names the class, the member and the expected declaration.
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
    """Whether a function can be called with this number of positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True
