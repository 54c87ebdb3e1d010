"""authorized_keys: whose messages a neuron takes, and which. One key a line: role, public key, comment."""

from pathlib import Path
from typing import Literal, get_args

from common import messages
from common.errors import Code, ConfigError, RequestError
from common.key_files import read_lines, write_lines
from common.keys import parse_key

KEY_FILE = "neuron.key"
NEXT_KEY_FILE = "neuron.key.next"
"""Made before the key in use is exchanged for it, so that gateways can be told first."""
AUTHORIZED_FILE = "authorized_keys"

Role = Literal["gateway", "admin", "observer"]
ROLES: tuple[str, ...] = get_args(Role)

_LOOK = frozenset(
    {messages.Hello, messages.Status, messages.Discover, messages.Health, messages.Models, messages.Effective,
     messages.Memory, messages.ReadEvents, messages.Version}
)  # fmt: skip
_WORK = frozenset({messages.Submit, messages.Abort, messages.Claim, messages.Beat, messages.Offer})
_INVITED = frozenset({messages.Join})
ALLOWED: dict[str, frozenset[type]] = {
    "gateway": frozenset(messages.ToNeuron.__args__) - _INVITED,
    "admin": frozenset(messages.ToNeuron.__args__) - _INVITED - _WORK,
    "observer": _LOOK,
    "invited": _INVITED,
}
"""By role: the kinds of messages that are taken. A gateway's admins steer through it, so it may do all. Who is invited
is not authorised yet.
"""


def check_role(role: str, message: messages.ToNeuron, who: str) -> None:
    """Raise RequestError if this role may not send this message; `who`: is it."""
    kind = type(message)
    is_posing = isinstance(message, messages.Hello) and message.role == "gateway" and role != "gateway"
    if is_posing or kind not in ALLOWED[role]:
        what = "Hello as a gateway" if is_posing else kind.__name__
        text = f"{who} is authorised as {role}, which may not send {what}; see neuronctl authorize"
        raise RequestError(Code.PERMISSION_DENIED, text)


def read_authorized(path: Path) -> dict[str, Role]:
    """Return the role of each public key (hexadecimal); no file means nobody. Raises ConfigError."""
    roles: dict[str, Role] = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        origin = f"{path}:{number}"
        if words[0] not in ROLES or len(words) < 2:
            raise ConfigError(f"{origin}: must be: {'|'.join(ROLES)} PUBLIC-KEY [COMMENT]")
        roles[parse_key(words[1], origin).hex()] = words[0]  # type: ignore[assignment]
    return roles


def authorize(path: Path, role: str, key: str, comment: str) -> None:
    """Add a key, or give it another role. Raises ConfigError."""
    key = parse_key(key, "KEY").hex()
    if not comment.isprintable():
        raise ConfigError("COMMENT: must be one line of text")  # whatever splits lines would make a key of the rest
    read_authorized(path)  # a file with a mistake is not made longer
    lines = [line for line in read_lines(path) if key not in line.lower().split()[1:2]]
    write_lines(path, [*lines, f"{role} {key} {comment}".rstrip()])


def revoke(path: Path, key: str) -> bool:
    """Strike a key out; False if it is not there. Raises ConfigError."""
    key = parse_key(key, "KEY").hex()
    lines = read_lines(path)
    left = [line for line in lines if key not in line.lower().split()[1:2]]
    if len(left) == len(lines):
        return False
    write_lines(path, left)
    return True
