"""Merging into JSON with comments: the result says what plain merging would, and all that was there is still there."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.cli.jsonc import merge

OURS = "ours"


def plainly(there: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Merge as the text should read afterwards."""
    result = dict(there)
    for key, value in made.items():
        known = result.get(key)
        is_deep = isinstance(known, dict) and isinstance(value, dict) and key != OURS
        result[key] = plainly(known, value) if is_deep else value  # type: ignore[arg-type]
    return result


KEYS = st.sampled_from(["a", "b", OURS, 'with "quotes"', "//no comment", "é"])
LEAVES = st.sampled_from([1, -2.5, True, None, "text", "/* none */", "http://x", 'q"}', [1, {"a": []}], []])
OBJECTS = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)))


@given(there=OBJECTS, made=OBJECTS, indented=st.booleans())
def test_without_comments_it_is_plain_merging(there: dict[str, Any], made: dict[str, Any], indented: bool) -> None:
    text = orjson.dumps(there, option=orjson.OPT_INDENT_2 if indented else 0).decode()
    once = merge(text, made, OURS)
    assert orjson.loads(once) == plainly(there, made)
    assert merge(once, made, OURS) == once


@pytest.mark.parametrize(
    ("text", "made", "wanted"),
    [
        ("", {"a": 1}, '{\n  "a": 1\n}\n'),
        ("{}", {"a": {"b": 1}}, '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"a": 1} // end\n', {"a": 2}, '{"a": 2} // end\n'),
        ('{\n  "a": 1 // one\n}', {"b": 2}, '{\n  "a": 1, // one\n  "b": 2\n}'),
        ('{\n  "a": 1, // one\n  /* two */\n}', {"b": 2}, '{\n  "a": 1, // one\n  /* two */\n  "b": 2\n}'),
        ('{"a": {"x": 1,}, }', {"a": {"y": 2}}, '{"a": {"x": 1,\n    "y": 2\n  }, }'),
        ('{"a": [1, // }\n 2,]}', {"a": []}, '{"a": []}'),
        ('{"ours": {"gone": 1}}', {"ours": {"b": 1}}, '{"ours": {\n    "b": 1\n  }}'),
    ],
)
def test_what_is_there_stays_as_it_is_written(text: str, made: dict[str, Any], wanted: str) -> None:
    assert merge(text, made, OURS) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "must hold an object"),
        ("{} {}", "something follows"),
        ('{"a" 1}', "no colon in line 1"),
        ('{\n"a": 1\n"b": 2}', "in line 3"),
        ('{"a": }', "no value"),
        ('{"a": 1', "in line 1"),
        ('{"a": [1 2]}', "neither a comma"),
        ('{"a": "torn', "Unterminated"),
        ("{" + '"a": {' * 200, "nested too deeply"),
        ("/* torn {}", "no value"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        merge(text, {"a": 1}, OURS)
