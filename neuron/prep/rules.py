"""A GBNF grammar in the making: its rules, and the pieces JSON consists of. Pure."""

import re

CHARACTERS = 65_536
"""Of a string whose schema sets no maxLength: a model in a loop inside quotation marks would never stop."""
_BLOCK = 256
_PRIMITIVES = {
    "ws": '( " " | "\\n" "\\n"? [ \\t]{0,20} )?',
    # No half of a surrogate pair, which is no text; no escaped slash, which is one in JSON only.
    "char": '[^"\\\\\\x00-\\x1f\\x7f] | "\\\\" ( ["\\\\bfnrt] | "u" code )',
    "code": "[0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}",
    "inline": '[^"\\\\\\x00-\\x1f\\x7f] | "\\\\" ["\\\\]',
    "bare-inline": "[^<\\x00-\\x1f\\x7f]",
    "bare-char": "[^<\\x00-\\x08\\x0b-\\x1f\\x7f]",
    "bare-step": 'bare-char | "<" [^/<\\x00-\\x08\\x0b-\\x1f\\x7f]',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "digits": "[0-9]{1,16}",
    "natural": '"0" | [1-9] [0-9]{0,15}',
    "integer": '"-"? natural',
    "positive-number": 'natural ( "." digits )? ( [eE] [-+]? [0-9]{1,2} )?',
    "number": '"-"? positive-number',
    "any-pair": 'string ws ":" ws value',
    "object": '"{" ws ( any-pair ( ws "," ws any-pair )* ws )? "}"',
    "array": '"[" ws ( value ( ws "," ws value )* ws )? "]"',
    "value": "object | array | string | number | boolean | null",
    "year": "[0-9]{4}",
    "month": '"0" [1-9] | "1" [0-2]',
    "day": '"0" [1-9] | [12] [0-9] | "3" [01]',
    "hour": '[01] [0-9] | "2" [0-3]',
    "sixty": "[0-5] [0-9]",
    "date": 'year "-" month "-" day',
    "time": 'hour ":" sixty ":" sixty ( "." [0-9]{1,6} )? ( "Z" | [-+] hour ":" sixty )',
    "date-time": 'date "T" time',
    "uuid": '[0-9a-fA-F]{8} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{12}',
    "octet": '"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9]',
    "ipv4": 'octet "." octet "." octet "." octet',
    "label": "[a-zA-Z0-9] ( [a-zA-Z0-9-]{0,61} [a-zA-Z0-9] )?",
    "hostname": 'label ( "." label ){0,10}',
    "email": '[a-zA-Z0-9_+-]{1,64} ( "." [a-zA-Z0-9_+-]{1,32} ){0,4} "@" label ( "." label ){1,10}',
}
FORMATS = frozenset({"date", "time", "date-time", "uuid", "ipv4", "hostname", "email"})
"""Formats of strings that are enforced; others say nothing about the text, as JSON Schema has it."""
_REFERENCE = re.compile(r"[a-z][a-z0-9-]*")
_TERMINAL = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """Return a terminal for exactly this text."""
    return '"' + "".join(_ESCAPES.get(c, c) for c in text) + '"'


class RuleSet:
    """Named rules. Two with the same body are one."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        """By name: the last number it was given."""

    def add(self, name: str, body: str) -> str:
        """Add a rule and return the name it got."""
        known = self._names.get(body)
        if known is not None:
            return known
        name = self.reserve(name)
        self.define(name, body)
        return name

    def reserve(self, name: str) -> str:
        """Return a free name for a rule that is defined later."""
        name = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-").lower()[:40] or "x"
        if not name[0].isalpha():
            name = f"x{name}"
        free, number = name, self._numbers.get(name, 1)
        while free in self._bodies or free in _PRIMITIVES or free in ("root", "string"):
            number += 1
            free = f"{name}-{number}"
        self._numbers[name] = number
        self._bodies[free] = ""
        return free

    def define(self, name: str, body: str) -> None:
        """Give a reserved name its body."""
        self._bodies[name] = body
        self._names.setdefault(body, name)

    def use(self, primitive: str) -> str:
        """See to it that a primitive is there, and what it consists of; return its name."""
        if primitive not in self._bodies:
            if primitive == "string":
                self._bodies["string"] = ""
                self._bodies["string"] = self.text(0, CHARACTERS)
                return primitive
            body = _PRIMITIVES[primitive]
            self._bodies[primitive] = body
            for name in _REFERENCE.findall(_TERMINAL.sub(" ", body)):
                self.use(name)
        return primitive

    def text(self, least: int, most: int) -> str:
        """Return the body of a JSON string of `least` to `most` characters."""
        return f'"\\"" {self.repeat(self.use("char"), least, most)} "\\""'

    def repeat(self, char: str, least: int, most: int) -> str:
        """Return so many characters by the rule for one.

        llama.cpp unrolls a repetition, so that long ones are built of blocks.
        A block and the rest that is shorter begin alike: two ways to read the text side by side, never more.
        """
        parts = []
        blocks, rest = divmod(least, _BLOCK)
        parts += [self.add("block", f"{char}{{{_BLOCK}}}")] * blocks
        if rest:
            parts.append(f"{char}{{{rest}}}")
        blocks, rest = divmod(most - least, _BLOCK)
        if blocks:
            upto = '""'
            block, tail = self.add("block", f"{char}{{{_BLOCK}}}"), self.add("tail", f"{char}{{0,{_BLOCK - 1}}}")
            for number in range(1, blocks + 1):
                upto = self.add(f"chars-{number}", f"{block} {upto} | {tail}")
            parts.append(f"( {char}{{{rest}}} {upto} | {char}{{0,{rest - 1}}} )" if rest else upto)
        elif rest:
            parts.append(f"{char}{{0,{rest}}}")
        return " ".join(parts) or '""'

    def render(self, root: str) -> str:
        """Return the grammar; `root` is the body of its first rule."""
        lines = [f"root ::= {root}"]
        lines += [f"{name} ::= {body}" for name, body in self._bodies.items()]
        return "\n".join(lines) + "\n"
