"""Lengths of time as people write them on a command line."""

import argparse

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Return the seconds of `90m`, `2h` or `1.5d`. Raises argparse.ArgumentTypeError."""
    number, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not number.replace(".", "", 1).isdigit() or not float(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write for example 90m, 2h or 1d")
    return float(number) * _SECONDS[unit]
