"""Database URLs of study files: `${NAME}` stands for an environment variable, and no password is ever shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_]\w*")
_USER = re.compile(r"(?P<scheme>[\w+.-]+://)(?P<user>[^/?]*@)?(?P<rest>.*)", re.DOTALL)
_PASSWORD = re.compile(r"(://[^:/@]*):(?!\$\{\w+\}@)(.*)@", re.DOTALL)
_IN_QUERY = re.compile(r"(?i)([?&][^=&]*(?:pass|pwd|token|secret)[^=&]*=)(?!\$\{\w+\}(?:&|$))[^&]*")


def expanded(url: str, environment: Mapping[str, str] | None = None) -> str:
    """`url` with every `${NAME}` replaced by that variable; inside `user:password@` its special characters are encoded.

    Raises:
        ValueError: if a variable is not set or empty, or `${…}` holds no name.
    """
    known = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not _NAME.fullmatch(name):
            raise ValueError(f"{match[0]} names no environment variable: write it as ${{NAME}}")
        if not known.get(name):
            raise ValueError(f"the environment variable {name} is not set: export {name}=… first")
        return known[name]

    parts = _USER.fullmatch(url)
    if parts is None or parts["user"] is None:
        return _VARIABLE.sub(value, url)
    user = _VARIABLE.sub(lambda match: quote(value(match), safe=""), parts["user"])
    return parts["scheme"] + user + _VARIABLE.sub(value, parts["rest"])


def masked(text: str) -> str:
    """`text` with *** for every password of a URL in it, but for one that is a `${NAME}`."""
    return _IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def variables(url: str) -> set[str]:
    """Names of the environment variables that `url` refers to."""
    return {name for name in _VARIABLE.findall(url) if _NAME.fullmatch(name)}
