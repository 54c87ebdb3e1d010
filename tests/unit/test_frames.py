"""Messages on a stream of bytes: whatever way it is cut, they come out as they went in."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import MAX_FRAME_BYTES
from common.errors import ProtocolError
from common.frames import Unpacker, pack

messages_of_parts = st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=6)


@given(messages=messages_of_parts, data=st.data())
def test_every_split_of_the_stream_gives_the_same_messages(messages: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(map(pack, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    unpacker, found = Unpacker(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += unpacker.feed(stream[start:end])
    assert found == messages


def test_nothing_comes_out_before_the_last_byte() -> None:
    stream, unpacker = pack([b"a", b"bc"]), Unpacker()
    assert [unpacker.feed(stream[i : i + 1]) for i in range(len(stream) - 1)] == [[]] * (len(stream) - 1)
    assert unpacker.feed(stream[-1:]) == [[b"a", b"bc"]]


def test_a_length_beyond_the_limit_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        Unpacker().feed(struct.pack("<BI", 1, MAX_FRAME_BYTES))
