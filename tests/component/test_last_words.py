"""What children write to stderr, as neuronctl logs shows it."""

import asyncio
import os

import pytest

from neuron.process.last_words import LINES, LastWords


def test_lines_are_passed_on_and_kept_over_a_restart(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        words = LastWords()
        for text in (b"one\ntwo\nhalf", b"three\n"):
            read, write = os.pipe()
            words.listen("GPU-1", read)
            os.write(write, text)
            await asyncio.sleep(0)
            os.close(write)
            words.close("GPU-1", read)
        assert words.since("GPU-1", 0) == (4, ["one", "two", "half", "three"])
        assert words.since("GPU-1", 3) == (4, ["three"])
        assert words.since("GPU-1", 9) == (4, [])
        assert words.since("other", 0) == (0, [])

    asyncio.run(main())
    assert capfd.readouterr().err == "one\ntwo\nhalfthree\n"


def test_only_the_last_lines_are_kept_and_none_of_any_length() -> None:
    async def main() -> None:
        words = LastWords()
        read, write = os.pipe()
        words.listen("prep", read)
        for number in range(LINES + 10):
            os.write(write, f"{number}\n".encode())
        os.write(write, b"x" * 20_000 + b"\n\xff\n")
        os.close(write)
        words.close("prep", read)
        last, lines = words.since("prep", 0)
        assert last == LINES + 12
        assert len(lines) == LINES
        assert len(lines[-2]) == 4096
        assert lines[-1] == "\ufffd"

    asyncio.run(main())
