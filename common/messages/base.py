"""What all messages are made of."""

import msgspec

PROTOCOL_VERSION = (1, 1)
"""Major, minor. Another major version is refused by name; a minor one only adds fields and kinds."""


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag=_kebab):
    """Base of all messages; `kind` on the wire is the class name in kebab case."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what messages are made of."""
