"""Removes secrets from the logs, the configuration and the checkpoints of a run."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REDACTED = "REDACTED"
#: environment variable with the text that replaces REDACTED in checkpoints of older versions, which redacted paths too
INSTEAD = "AUDIO_DIFFUSION_REDACTED"

_SECRET = re.compile(
    r"(^|[_\W])(key|apikey|accesskey|secretkey|token|secret|password|passwd|passphrase|credentials?|auth|"
    r"authorization|signature|cookie)($|[_\W])|[_\W]pwd$"  # MYSQL_PWD, but neither PWD nor OLDPWD
)
#: last words of names that denote the place, the owner or the kind of a secret, and not the secret itself
_ABOUT = re.compile(r"[_\W](files?|dirs?|directory|folders?|paths?|sock(et)?|pid|home|hosts?|urls?|names?|types?)$")
_TOKENS = re.compile(  # of Hugging Face, AWS, GitHub, GitLab, Slack, Google, OpenAI and the like, and of OAuth (JWT)
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{22,}"
    r"|\bglpat-[\w-]{20,}|\bxox[abpr]-[\w-]{10,}|\bAIza[\w-]{35}\b|\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")

#: parts of a run's configuration with names that users choose, or with values that describe the model and its data;
#: their names do not make them secrets
_CHOSEN = ("name", "run_dir", "ckpt", "init", "classes", "audio", "model", "representation", "diffusion", "sampler")
_CHOSEN_OF_DATA = ("train", "val", "classes", "fields", "weights")


def redacted(node: Any) -> Any:
    """Returns plain data of the same structure without secrets.

    These are redacted: values of keys that denote a secret (``api_key``, ``token``, ``password`` ..), user, password
    and query of addresses, words that have the form of well-known tokens, and the values of environment variables whose
    names denote a secret. Paths and common words are not redacted.
    """
    if isinstance(node, dict):
        return {
            name: REDACTED if _is_secret_value(str(name), value) else redacted(value) for name, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [redacted(value) for value in node]
    return _clean(node) if isinstance(node, str) else node


def redacted_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's resolved configuration without secrets, from which the model can be rebuilt.

    The parameters and the name of the model and the locations of its data keep their values, except for credentials in
    addresses and tokens recognised by their form.
    """
    kept = {name: _by_form(value) for name, value in config.items() if name in _CHOSEN}
    data = config.get("data")
    if isinstance(data, dict):
        chosen = {name: _by_form(value) for name, value in data.items() if name in _CHOSEN_OF_DATA}
        kept["data"] = {**redacted(data), **chosen}
    return {**redacted({name: value for name, value in config.items() if name not in kept}), **kept}


def _by_form(node: Any) -> Any:
    """Returns plain data without credentials in addresses and without well-known tokens, independent of key names."""
    if isinstance(node, dict):
        return {name: _by_form(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_by_form(value) for value in node]
    return _clean_form(node) if isinstance(node, str) else node


def redacted_argument(argument: str) -> str:
    """Returns a command-line argument, ``key=value`` or any other, without secrets."""
    name, is_option, value = argument.partition("=")
    if is_option and value and any(map(is_secret, name.split("."))):
        return f"{name}={REDACTED}"
    inner = re.sub(r"([\w.-]+)(\s*:\s*)([^\s,{}\[\]]+)", _pair, value)  # {s3: {key: .., secret: ..}}
    return f"{name}{is_option}{_clean(inner)}" if is_option else _clean(argument)


def without_redacted(node: Any) -> Any:
    """Returns plain data without the keys whose values were redacted, so that they get their defaults."""
    if isinstance(node, dict):
        return {name: without_redacted(value) for name, value in node.items() if value != REDACTED}
    return node


def find_redacted(node: Any, place: str) -> dict[str, str]:
    """Returns the values in which something was redacted, by dotted key."""
    if isinstance(node, dict):
        return {
            k: v for key, value in node.items() for k, v in find_redacted(value, f"{place}.{key}".strip(".")).items()
        }
    if isinstance(node, list):
        return {k: v for i, value in enumerate(node) for k, v in find_redacted(value, f"{place}[{i}]").items()}
    return {place: node} if isinstance(node, str) and REDACTED in node else {}


def with_instead(node: Any) -> Any:
    """Returns plain data with redacted parts replaced by the environment variable ``INSTEAD``, if it is set."""
    if isinstance(node, dict):
        return {name: with_instead(value) for name, value in node.items()}
    if isinstance(node, list):
        return [with_instead(value) for value in node]
    instead = os.environ.get(INSTEAD)
    return node.replace(REDACTED, instead) if isinstance(node, str) and instead else node


def may_be(before: Any, now: Any) -> bool:
    """Whether a stored value, parts of which may be redacted, is compatible with the value given now."""
    if not isinstance(before, str) or not isinstance(now, str) or REDACTED not in before:
        return False
    return re.fullmatch(".*".join(map(re.escape, before.split(REDACTED))), now, re.DOTALL) is not None


def is_secret(name: str) -> bool:
    """Whether a name denotes a secret."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()  # camelCase
    return _SECRET.search(words) is not None and _ABOUT.search(words) is None


def _is_secret_value(name: str, value: Any) -> bool:
    """Whether a key's value is redacted because of the key's name."""
    if not value or isinstance(value, bool | int | float):
        return False
    return is_secret(name) or (name.lower() == "pwd" and isinstance(value, str) and "/" not in value)


def _pair(match: re.Match) -> str:
    return f"{match[1]}{match[2]}{REDACTED}" if is_secret(match[1]) else match[0]


def _could_be_secret(value: str) -> bool:
    """Whether the value of an environment variable with a secret's name is one: not a path, a program, an address, a
    number or a word that text may contain for another reason."""
    if (
        len(value) < 8
        or "://" in value
        or value.startswith(("/", "~", "./", "../"))
        or re.match(r"[A-Za-z]:[\\/]", value)
    ):
        return False
    if os.path.exists(value):
        return False
    kinds = [re.search(kind, value) is not None for kind in ("[a-z]", "[A-Z]", "[0-9]", r"[^A-Za-z0-9_\s-]")]
    return (sum(kinds) > 1 and any(kinds[:2])) or len(value) >= 20


def _clean(text: str) -> str:
    """Redacts secrets of the environment, as whole words, and those recognised by their form."""
    for name, value in os.environ.items():
        if value in text and is_secret(name) and _could_be_secret(value):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", REDACTED, text)
    return _clean_form(text)


def _clean_form(text: str) -> str:
    """Redacts credentials in addresses, and tokens recognised by their form; an existing path is not a token."""
    without = _URL.sub(lambda match: redacted_url(match[0], is_pattern=True), text)
    return without if _is_path(text) else _TOKENS.sub(REDACTED, without)


def _is_path(text: str) -> bool:
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):
        return False


def redacted_url(url: str, is_pattern: bool = False) -> str:
    """Redacts user, password, query and fragment of an address; a query may contain signatures and keys.

    Args:
        url: the address.
        is_pattern: whether "?" may be a wildcard: then only a query with "=" is redacted, and the fragment is
            kept.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets of a glob
        query = r"\?.*=.*" if is_pattern else r"\?.*"
        return re.sub(r"//[^/@]*@", f"//{REDACTED}@", re.sub(query, f"?{REDACTED}", url))
    user, at, host = parts.netloc.rpartition("@")
    query = REDACTED if "=" in parts.query or (parts.query and not is_pattern) else parts.query
    fragment = parts.fragment if is_pattern else ""
    if (not user and (query, fragment) == (parts.query, parts.fragment)) or not parts.netloc:
        return url
    return parts._replace(netloc=f"{REDACTED}@{host}" if at else host, query=query, fragment=fragment).geturl()
