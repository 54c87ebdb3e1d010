"""Request bodies to typed requests; every refusal names the field and says what is allowed."""

import re
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from common.errors import Code, RequestError

T = TypeVar("T", bound=msgspec.Struct)

_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`(?: - at `\$\.?(?P<path>.*)`)?")
_INVALID = re.compile(r"(?P<what>.*?) - at `(?:key` in `)?\$\.?(?P<path>.*)`", re.DOTALL)


class BodyDecoder(Generic[T]):
    """Decodes JSON bodies of one kind of request."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        self._allowed = {f.encode_name: describe(f.type) for f in info.fields}

    def __call__(self, body: bytes) -> T:
        """Return the request in `body`. Raises RequestError: invalid_json, missing_field, invalid_value."""
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise self._explain(str(error)) from None
        except UnicodeDecodeError:
            raise RequestError(Code.INVALID_JSON, "the body is not UTF-8 text") from None
        except msgspec.DecodeError as error:
            text = str(error)
            where = "" if "(byte " in text else f" (byte {len(body)})"
            raise RequestError(Code.INVALID_JSON, f"the body is not valid JSON: {text}{where}") from None
        except RecursionError:
            raise RequestError(Code.INVALID_JSON, "the body is nested too deeply") from None

    def _explain(self, text: str) -> RequestError:
        missing = _MISSING.fullmatch(text)
        if missing is not None:
            path = f"{missing['path']}.{missing['field']}" if missing["path"] else missing["field"]
            return missing_field(path, self._allowed.get(path, ""))
        invalid = _INVALID.fullmatch(text)
        if invalid is None:
            return RequestError(Code.INVALID_VALUE, "the body must be a JSON object")
        path = invalid["path"]
        field = re.split(r"[.\[]", path, maxsplit=1)[0]
        return invalid_value(path.replace("[...]", ""), self._allowed.get(field, "something else"), invalid["what"])


def missing_field(param: str, allowed: str = "") -> RequestError:
    """Return the error for a field that must be there; `allowed` describes its values."""
    return RequestError(
        Code.MISSING_FIELD, f"{param}: is required" + (f"; it must be {allowed}" if allowed else ""), param=param
    )


def invalid_value(param: str, allowed: str, found: str = "") -> RequestError:
    """Return the error for a field with a value that is not allowed; `allowed` describes what is."""
    detail = f" ({found[:1].lower()}{found[1:].replace('`', '')})" if found else ""
    return RequestError(Code.INVALID_VALUE, f"{param}: must be {allowed}{detail}", param=param)


def unsupported(param: str, remedy: str) -> RequestError:
    """Return the error for a parameter that exists but does nothing here."""
    return RequestError(Code.UNSUPPORTED_PARAMETER, f"{param}: is not supported; {remedy}", param=param)


def describe(kind: inspect.Type) -> str:
    """Say in words which values a type allows, `null` left out."""
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(dict.fromkeys(describe(t) for t in types if not isinstance(t, inspect.NoneType)))
        case inspect.IntType():
            return "a whole number" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.ListType(item_type=item):
            least = "non-empty " if kind.min_length else ""
            return f"a {least}list" + ("" if isinstance(item, inspect.AnyType) else f", each of it {describe(item)}")
        case inspect.DictType(key_type=inspect.IntType(), value_type=value):
            return f"an object that maps token ids to {describe(value)}"
        case inspect.DictType() | inspect.StructType():
            return "an object"
        case _:
            return "any value"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    low: Any = kind.ge if kind.ge is not None else kind.gt
    if low is None:
        return ""
    start = f" from {low:g}" if kind.ge is not None else f" above {low:g}"
    if kind.le is None or kind.le >= 2**31 - 1:
        return start + (" up" if kind.ge is not None else "")
    return f"{start} to {kind.le:g}"
