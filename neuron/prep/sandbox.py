"""Where chat templates run: the Jinja of the Hugging Face libraries, limited in time, memory and reach.

A template comes with a model file, so it is a program of a stranger.
"""

import json
import resource
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 5.0
"""Processor time a template may take; a loop in a hostile file must not stop everybody's requests."""
MEMORY_MB = 1024
"""What a template may allocate on top of what the process holds already."""
OUTPUT_CHARACTERS = 1 << 26
"""Longest prompt that a template may write; as many as the largest request body has bytes."""
PRODUCT_LENGTH = 1 << 20
"""Longest text or list that `*` may make."""
PRODUCT_BITS = 4096
"""Longest number that `*` and `**` may make: arithmetic in C cannot be interrupted by the limit of time."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a trainer counts; for a prompt it is its content."""

    tags = {"generation"}  # noqa: RUF012 # Jinja reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Given(list[Any]):
    """A list that a template was given; it may not change it, as it may its own."""


class Environment(ImmutableSandboxedEnvironment):
    """Jinja as `apply_chat_template` of the Hugging Face libraries sets it up, which templates are written for."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters["tojson"] = _to_json
        self.filters["from_json"] = json.loads  # llama.cpp's, which templates written for it use
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # the host's local day

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may use it; some keep queues in lists of their own."""
        if attr in ("append", "pop") and isinstance(obj, list) and not isinstance(obj, Given):
            return True
        return bool(super().is_safe_attribute(obj, attr, value))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carry out `*` or `**`. Raises SecurityError where the result would be huge."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            is_huge = bits > PRODUCT_BITS
        elif operator == "*":
            count, sized = (left, right) if isinstance(left, int) else (right, left)
            is_huge = isinstance(count, int) and hasattr(sized, "__len__") and len(sized) * count > PRODUCT_LENGTH
        else:
            is_huge = False
        if is_huge:
            raise SecurityError(f"the result of '{operator}' would be too large")
        return super().call_binop(context, operator, left, right)


@contextmanager
def limited(cpu_s: float | None = None) -> Iterator[None]:
    """Raise TimeoutError after `cpu_s`, by default CPU_S, in this, the main, thread; MemoryError beyond MEMORY_MB."""
    limit_s = CPU_S if cpu_s is None else cpu_s

    def expire(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"it took longer than {limit_s:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ceiling = _data_bytes() + MEMORY_MB * 2**20
    before = signal.signal(signal.SIGPROF, expire)
    # Processor time, so that a process that was stopped for a while blames nobody.
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard), hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Return what the kernel counts against RLIMIT_DATA (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is; Jinja's own filter would escape it for HTML."""
    if isinstance(value, Generator):  # of a filter such as map
        value = list(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
