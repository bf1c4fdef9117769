"""Redaction of secrets in logs, reports and trackers: secret variables, passwords in URLs, signed queries."""

import os
import re
from collections.abc import Mapping

NAME = re.compile(  # words in a variable's name, in capitals
    r"TOKEN|SECRET|PASS(WORD|WD|PHRASE|$)|(^|_)PASS(_|$)|PWD(_|$)|CREDENTIAL|COOKIE|(^|_)AUTH(_|$)|AUTHORIZATION|HEADERS(_|$)"
    r"|(API|ACCESS|PRIVATE|SIGNING)_?KEY|(^|_)KEY(_|$)"
)
SHORTEST = 8  # characters; masking shorter values would hide ordinary words
MASK = "***"
IN_ADDRESS = re.compile(r"(?P<head>\w[\w+.-]*://[^\s/:@]*:)\S+(?P<tail>@)")
USER = re.compile(r"(?P<head>https?://)[^\s/:@?#]+(?P<tail>@)")  # a token in place of a user name
IN_QUERY = re.compile(
    r"(?P<head>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|sig|\w*token|\w*secret"
    r"|(?:access|secret|api|private)_?key(?:_id)?|password|passwd|pwd)=)[^&\s'\"]+",
    re.IGNORECASE,
)
IN_HEADER = re.compile(r"(?P<head>\bAuthorization\W{1,4}\w+\s+|\bBearer\s+(?=\S{16}))[\w.~+/=-]+", re.IGNORECASE)
NOT_SECRET = {"RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_MODE", "PWD", "OLDPWD"}  # names of files


def is_secret(name: str) -> bool:
    """Tell whether an environment variable of this name holds a secret."""
    return name.upper() not in NOT_SECRET and bool(NAME.search(name.upper()))


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the text with secrets of the environment and in URLs replaced by ***."""
    variables = os.environ if environment is None else environment
    values = {value for name, value in variables.items() if is_secret(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    for pattern in (IN_ADDRESS, USER):
        text = pattern.sub(rf"\g<head>{MASK}\g<tail>", text)
    for pattern in (IN_QUERY, IN_HEADER):
        text = pattern.sub(rf"\g<head>{MASK}", text)
    return text


def contains_secret(text: str) -> bool:
    """Tell whether `redact` would change the text."""
    return redact(text) != text
