"""What no log, report or tracker may show: values of secret variables, passwords in addresses, signed queries."""

import os
import re
from collections.abc import Mapping

NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|(^|_)KEY(_|$)")  # of a variable, in capitals
SHORTEST = 8  # characters: a shorter value would hide words that are none
MASK = "***"
IN_ADDRESS = re.compile(r"(?P<head>\w[\w+.-]*://[^\s/:@]*:)\S+(?P<tail>@)")
IN_QUERY = re.compile(
    r"(?P<head>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|sig|token)=)[^&\s]+",
    re.IGNORECASE,
)
NOT_SECRET = {"RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE"}  # names of files


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds one."""
    return name.upper() not in NOT_SECRET and bool(NAME.search(name.upper()))


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with every secret of the environment, and those that stand in addresses, replaced by ***."""
    own = os.environ if environment is None else environment
    values = {value for name, value in own.items() if is_secret(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    text = IN_ADDRESS.sub(rf"\g<head>{MASK}\g<tail>", text)
    return IN_QUERY.sub(rf"\g<head>{MASK}", text)


def shows_secret(text: str) -> bool:
    """Whether `masked` hides something of it."""
    return masked(text) != text
