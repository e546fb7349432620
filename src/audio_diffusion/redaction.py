"""Secrets stay out of what a run leaves behind: its logs, its configuration, its checkpoints."""

import os
import re
from typing import Any
from urllib.parse import urlsplit

REDACTED = "REDACTED"

_SECRET = re.compile(
    r"(^|[_\W])(key|apikey|accesskey|secretkey|token|secret|password|passwd|pwd|passphrase|credentials?|auth|"
    r"authorization|signature|cookie)($|[_\W])"
)
_TOKENS = re.compile(  # of Hugging Face, AWS, GitHub, OpenAI and the like, and of OAuth (JWT)
    r"\bhf_\w{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsu]_\w{20,}|\bsk-[\w-]{20,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")


def redacted(node: Any) -> Any:
    """Plain data without its secrets, of the same shape.

    Left out are values of keys that are called so (``key``, ``api_key``, ``token``, ``password`` ..),
    user, password and query of addresses, words that have the form of well-known tokens, and whatever stands in an
    environment variable of such a name.
    """
    if isinstance(node, dict):
        return {
            name: REDACTED
            if value and not isinstance(value, bool | int | float) and is_secret(str(name))
            else redacted(value)
            for name, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [redacted(value) for value in node]
    return _clean(node) if isinstance(node, str) else node


def redacted_argument(argument: str) -> str:
    """An argument of the command line, ``key=value`` or whatever it is, without its secrets."""
    name, is_option, value = argument.partition("=")
    if is_option and value and is_secret(name):
        return f"{name}={REDACTED}"
    inner = re.sub(r"([\w.-]+)(\s*:\s*)([^\s,{}\[\]]+)", _pair, value)  # {s3: {key: .., secret: ..}}
    return f"{name}{is_option}{_clean(inner)}" if is_option else _clean(argument)


def without_redacted(node: Any) -> Any:
    """Plain data without the keys whose values were redacted: what is not known is left to its defaults."""
    if isinstance(node, dict):
        return {name: without_redacted(value) for name, value in node.items() if value != REDACTED}
    return node


def is_secret(name: str) -> bool:
    """Whether something of this name is not to be shown."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()  # camelCase
    return _SECRET.search(words) is not None


def _pair(match: re.Match) -> str:
    return f"{match[1]}{match[2]}{REDACTED}" if is_secret(match[1]) else match[0]


def _clean(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret(name):
            text = text.replace(value, REDACTED)
    return _TOKENS.sub(REDACTED, _URL.sub(lambda match: _clean_url(match[0]), text))


def _clean_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets of a glob
        return re.sub(r"//[^/@]*@", f"//{REDACTED}@", re.sub(r"\?.*=.*", f"?{REDACTED}", url))
    user, at, host = parts.netloc.rpartition("@")
    # a query without "=" is the wildcard of a pattern
    query = REDACTED if "=" in parts.query else parts.query
    if (not user and query == parts.query) or not parts.netloc:
        return url
    return parts._replace(netloc=f"{REDACTED}@{host}" if at else host, query=query).geturl()
