"""Mutates examples: most of what comes out is nearly right, which reaches further than noise."""

import random
from collections.abc import Sequence

NUMBERS = [
    (n & (1 << 8 * size) - 1).to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    for n in (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63)
]
WORDS = [
    b"\0", b"\xff", b"\r\n", b"\n\n", b"data:", b"null", b"true", b"-1", b"1e999", b"NaN", b'"', b"\\", b"{", b"}",
    b"[", b"]", b"{{", b"}}", b"<", b">", b"</", b"\xc3", b"\xf0\x9f", b"\xed\xa0\x80", b"\\ud800", b"[" * 600,
    b"{}" * 50, b"9" * 400, b"A" * 5000, b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
]  # fmt: skip


class Mutator:
    """The same seed gives the same sequence."""

    def __init__(self, examples: Sequence[bytes], seed: int) -> None:
        self._examples = list(examples)
        self._random = random.Random(seed)

    def next(self) -> bytes:
        """Return a mutation of one of the examples."""
        data = bytearray(self._random.choice(self._examples))
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            self._mutate(data)
        return bytes(data)

    def _mutate(self, data: bytearray) -> None:
        pick = self._random
        at, end = sorted((pick.randint(0, len(data)), pick.randint(0, len(data))))
        end = min(end, at + pick.choice((1, 2, 4, 16, 200)))
        match pick.randrange(9):
            case 0:
                if data:
                    data[min(at, len(data) - 1)] ^= 1 << pick.randrange(8)
            case 1:
                data[at:end] = pick.randbytes(end - at)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * pick.choice((1, 2, 50))
            case 4:
                data[at:at] = pick.choice(WORDS)
            case 5:
                data[at:end] = pick.choice(WORDS)
            case 6:
                number = pick.choice(NUMBERS)
                data[at : at + len(number)] = number
            case 7:
                other = pick.choice(self._examples)
                cut = pick.randint(0, len(other))
                data[at:end] = other[cut : cut + pick.choice((4, 40, 400))]
            case _:
                del data[at:]
