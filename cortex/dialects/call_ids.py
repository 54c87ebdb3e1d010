"""Ids of calls."""

from hashlib import blake2b

from cortex.dialects.contract import Heading

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
LENGTH = 9
"""Letters and digits: the templates of one family take no other number of them."""


def call_id(heading: Heading, choice: int, number: int) -> str:
    """Return the id of a choice's `number`-th call; the same reply gives the same ids."""
    seed = int.from_bytes(blake2b(f"{heading.id}/{choice}/{number}".encode(), digest_size=8).digest())
    letters = []
    for _ in range(LENGTH):
        seed, digit = divmod(seed, len(_DIGITS))
        letters.append(_DIGITS[digit])
    return "".join(letters)
