"""Whole numbers between bounds, in GBNF. Pure."""

DIGITS = 16
"""Of a number without a bound: beyond 2^53 JSON's readers begin to differ."""


def integer_range(low: int | None, high: int | None) -> str:
    """Return a body for the integers from `low` to `high`; None is no bound."""
    parts = []
    if low is None or low < 0:
        # The negative ones, by their size.
        least = 1 if high is None or high >= 0 else -high
        parts += [f'"-" ( {" | ".join(_naturals(least, None if low is None else -low))} )']
    if high is None or high >= 0:
        parts += _naturals(max(0, low or 0), high)
    return " | ".join(parts)


def _naturals(low: int, high: int | None) -> list[str]:
    """Return alternatives for the numbers from `low` (≥ 0) up, by their number of digits."""
    if high is None:
        high = max(10**DIGITS, 10 ** len(str(low))) - 1
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        last = min(high, 10**digits - 1)
        parts.append(_between(str(first), str(last)))
    return parts


def _between(first: str, last: str) -> str:
    """Return a body for the numbers between two of the same length, both included."""
    if not first:
        return ""
    a, b, rest = first[0], last[0], len(first) - 1
    if a == b:
        return f'"{a}" {_between(first[1:], last[1:])}'.strip()
    any_rest = f"[0-9]{{{rest}}}" if rest else ""
    is_low_whole, is_high_whole = set(first[1:]) <= {"0"}, set(last[1:]) <= {"9"}
    parts = []
    if not is_low_whole:
        parts.append(f'"{a}" {_group(_between(first[1:], "9" * rest))}')
    middle_a, middle_b = int(a) + (not is_low_whole), int(b) - (not is_high_whole)
    if middle_a <= middle_b:
        parts.append(f"[{middle_a}-{middle_b}] {any_rest}".strip())
    if not is_high_whole:
        parts.append(f'"{b}" {_group(_between("0" * rest, last[1:]))}')
    return " | ".join(parts) if len(parts) == 1 else f"( {' | '.join(parts)} )"


def _group(body: str) -> str:
    return f"( {body} )" if "|" in body else body
