"""Bytes to messages and back: msgpack by msgspec, one decoder for each direction of the bus."""

from typing import Any, Generic, TypeVar

import msgspec

from common.errors import ProtocolError
from common.messages import FromNeuron, FromPrep, FromWorker, ToNeuron, ToPrep, ToWorker

MAX_FRAME_BYTES = 128 * 1024 * 1024
"""Longer frames are refused by the socket itself (ZMQ_MAXMSGSIZE): twice the largest request body."""

_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """Return the frame of a message."""
    return _encoder.encode(message)


class Decoder(Generic[M]):
    """Decodes the frames of one direction."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def __call__(self, frame: bytes) -> M:
        """Return the message in `frame`. Raises ProtocolError naming the failing path."""
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(str(error)) from None


decode_to_neuron: Decoder[ToNeuron] = Decoder(ToNeuron)
decode_from_neuron: Decoder[FromNeuron] = Decoder(FromNeuron)
decode_to_worker: Decoder[ToWorker] = Decoder(ToWorker)
decode_from_worker: Decoder[FromWorker] = Decoder(FromWorker)
decode_to_prep: Decoder[ToPrep] = Decoder(ToPrep)
decode_from_prep: Decoder[FromPrep] = Decoder(FromPrep)
