"""Request bodies that are wrong in every way: a good one with parts replaced, taken out, repeated or nested."""

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**40, 0.5, 1e308, -0.0, "", " ", "m", "auto", "none",
    "required", "json_schema", "x" * 5000, "\x00", "\u2028🙂", "<|im_start|>", [], [[]], {}, {"": None}, [None], [0],
    {"type": "text"}, {"type": "text", "text": 5}, {"role": "user"}, {"role": "tool", "content": "x"},
    {"type": "function"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
]  # fmt: skip
NAMES = ["stream", "n", "stop", "seed", "tools", "tool_choice", "response_format", "grammar", "logprobs", "echo",
         "temperature", "max_tokens", "logit_bias", "system", "thinking", "text", "input", "messages"]  # fmt: skip
_DEEP = {f"deep{n}": b'{"a":' * n + b"1" + b"}" * n for n in (2, 200, 20_000)}
"""What JSON's own writer would be too careful to write, by the text it is written as first."""


def mutate(body: dict[str, Any], random: Random) -> bytes:
    """Return the body with one to three changes to its values, and at times to its bytes."""
    changed: Any = json.loads(json.dumps(body))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        changed = _change(changed, random)
    data = json.dumps(changed, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    for name, text in _DEEP.items():
        data = data.replace(b'"%s"' % name.encode(), text)
    return _damage(data, random) if random.random() < 0.15 else data


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(child, (*at, key))


def _change(body: Any, random: Random) -> Any:
    if isinstance(body, dict) and random.random() < 0.25:
        return {**body, random.choice(NAMES): deepcopy(random.choice(STRANGE))}
    *path, last = random.choice([p for p in _places(body) if p] or [(None,)])
    if last is None:
        return deepcopy(random.choice(STRANGE))
    parent = body
    for key in path:
        parent = parent[key]
    match random.randrange(5):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, list):
            parent += [parent[last]] * random.choice((1, 30))
        case 2:
            parent[last] = [parent[last]]
        case 3:
            parent[last] = random.choice(list(_DEEP))
        case _:
            parent[last] = deepcopy(random.choice(STRANGE))
    return body


def _damage(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    match random.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at:] * 2
        case _:
            return data[:at] + b"\\ud800" + data[at:]
