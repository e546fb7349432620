"""Secrets stay out of what a run leaves behind: its logs, its configuration, its checkpoints."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REDACTED = "REDACTED"
#: environment variable: what stood where a checkpoint has REDACTED, for those of older versions, which took paths for
#: secrets
INSTEAD = "AUDIO_DIFFUSION_REDACTED"

_SECRET = re.compile(
    r"(^|[_\W])(key|apikey|accesskey|secretkey|token|secret|password|passwd|passphrase|credentials?|auth|"
    r"authorization|signature|cookie)($|[_\W])|[_\W]pwd$"  # MYSQL_PWD, but neither PWD nor OLDPWD
)
#: last words of names that say where a secret lies, whose it is or of what kind, and not what it is
_ABOUT = re.compile(r"[_\W](files?|dirs?|directory|folders?|paths?|sock(et)?|pid|home|hosts?|urls?|names?|types?)$")
_TOKENS = re.compile(  # of Hugging Face, AWS, GitHub, GitLab, Slack, Google, OpenAI and the like, and of OAuth (JWT)
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{22,}"
    r"|\bglpat-[\w-]{20,}|\bxox[abpr]-[\w-]{10,}|\bAIza[\w-]{35}\b|\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")

#: of a run's configuration: names that the user chooses and values that a model is built from, or finds its data by.
#: None of them is a secret because of how it is called
_CHOSEN = ("name", "run_dir", "ckpt", "init", "classes", "audio", "model", "representation", "diffusion", "sampler")
_CHOSEN_OF_DATA = ("train", "val", "classes", "fields", "weights")


def redacted(node: Any) -> Any:
    """Plain data without its secrets, of the same shape.

    These are left out: values of keys that denote a secret (``api_key``, ``token``, ``password`` ..), user, password
    and query of addresses, words that have the form of well-known tokens, and the values of environment variables whose
    names denote a secret. Paths are no secrets, nor are words that could be anything else.
    """
    if isinstance(node, dict):
        return {
            name: REDACTED if _is_secret_value(str(name), value) else redacted(value) for name, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [redacted(value) for value in node]
    return _clean(node) if isinstance(node, str) else node


def redacted_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's resolved configuration without its secrets, from which the model can be built again.

    What the model is built from, what it is called and where its data lie keep their values, without the credentials of
    addresses and without tokens that are known by their form.
    """
    kept = {name: _by_form(value) for name, value in config.items() if name in _CHOSEN}
    data = config.get("data")
    if isinstance(data, dict):
        chosen = {name: _by_form(value) for name, value in data.items() if name in _CHOSEN_OF_DATA}
        kept["data"] = {**redacted(data), **chosen}
    return {**redacted({name: value for name, value in config.items() if name not in kept}), **kept}


def _by_form(node: Any) -> Any:
    """Plain data without credentials in addresses and without well-known tokens, whatever its keys are called."""
    if isinstance(node, dict):
        return {name: _by_form(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_by_form(value) for value in node]
    return _clean_form(node) if isinstance(node, str) else node


def redacted_argument(argument: str) -> str:
    """An argument of the command line, ``key=value`` or whatever it is, without its secrets."""
    name, is_option, value = argument.partition("=")
    if is_option and value and any(map(is_secret, name.split("."))):
        return f"{name}={REDACTED}"
    inner = re.sub(r"([\w.-]+)(\s*:\s*)([^\s,{}\[\]]+)", _pair, value)  # {s3: {key: .., secret: ..}}
    return f"{name}{is_option}{_clean(inner)}" if is_option else _clean(argument)


def without_redacted(node: Any) -> Any:
    """Plain data without the keys whose values were redacted: what is not known is left to its defaults."""
    if isinstance(node, dict):
        return {name: without_redacted(value) for name, value in node.items() if value != REDACTED}
    return node


def find_redacted(node: Any, place: str) -> dict[str, str]:
    """The values in which something was redacted, by their dotted places."""
    if isinstance(node, dict):
        return {
            k: v for key, value in node.items() for k, v in find_redacted(value, f"{place}.{key}".strip(".")).items()
        }
    if isinstance(node, list):
        return {k: v for i, value in enumerate(node) for k, v in find_redacted(value, f"{place}[{i}]").items()}
    return {place: node} if isinstance(node, str) and REDACTED in node else {}


def with_instead(node: Any) -> Any:
    """Plain data with what the environment variable ``INSTEAD`` holds in place of what was redacted, if it is set."""
    if isinstance(node, dict):
        return {name: with_instead(value) for name, value in node.items()}
    if isinstance(node, list):
        return [with_instead(value) for value in node]
    instead = os.environ.get(INSTEAD)
    return node.replace(REDACTED, instead) if isinstance(node, str) and instead else node


def may_be(before: Any, now: Any) -> bool:
    """Whether a value that was stored, in which something may be redacted, can have been the one that is given now."""
    if not isinstance(before, str) or not isinstance(now, str) or REDACTED not in before:
        return False
    return re.fullmatch(".*".join(map(re.escape, before.split(REDACTED))), now, re.DOTALL) is not None


def is_secret(name: str) -> bool:
    """Whether something of this name is not to be shown."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()  # camelCase
    return _SECRET.search(words) is not None and _ABOUT.search(words) is None


def _is_secret_value(name: str, value: Any) -> bool:
    """Whether a key's value is left out because of what the key is called."""
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
    """Without the environment's secrets, as whole words, and those known by their form."""
    for name, value in os.environ.items():
        if value in text and is_secret(name) and _could_be_secret(value):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", REDACTED, text)
    return _clean_form(text)


def _clean_form(text: str) -> str:
    """Without credentials in addresses, and tokens that are known by their form; a path that exists is no token."""
    without = _URL.sub(lambda match: _clean_url(match[0]), text)
    return without if _is_path(text) else _TOKENS.sub(REDACTED, without)


def _is_path(text: str) -> bool:
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):
        return False


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
