"""Vectors of embeddings as a reply gives them."""

import base64
import math
import struct
from typing import Any

import orjson
import pytest

from common.errors import Code, RequestError
from common.messages import EndedItem
from cortex.dialects.contract import Heading
from cortex.dialects.embeddings import Embeddings

VECTOR = (0.6, 0.0, 0.8)


def reply(**fields: Any) -> Any:
    """Return the vector of a reply."""
    body = Embeddings().read(orjson.dumps({"model": "m", "input": "a", **fields})).body(Heading("i", "m", 1))
    vectors = [struct.pack("<3f", *VECTOR)]
    body.feed([(0, EndedItem(job="j", attempt=0, total=0, reason="stop", prompt_tokens=2, vectors=vectors))])
    return orjson.loads(body.render())["data"][0]["embedding"]


def test_a_vector_is_told_as_numbers_or_as_base64() -> None:
    assert reply() == pytest.approx(VECTOR)
    assert struct.unpack("<3f", base64.b64decode(reply(encoding_format="base64"))) == pytest.approx(VECTOR)


def test_fewer_dimensions_are_the_first_ones_of_length_1_again() -> None:
    assert reply(dimensions=2) == pytest.approx((1.0, 0.0))
    assert math.hypot(*reply(dimensions=3)) == pytest.approx(1.0)
    assert len(base64.b64decode(reply(dimensions=2, encoding_format="base64"))) == 8


def test_more_dimensions_than_there_are_are_refused_by_name() -> None:
    for dimensions in (4, 0):
        with pytest.raises(RequestError) as caught:
            reply(dimensions=dimensions)
        assert (caught.value.code, caught.value.param) == (Code.INVALID_VALUE, "dimensions")
