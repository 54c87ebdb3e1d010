"""Images in requests: read and size-checked, and refused as long as no model here has a projector."""

import base64
import binascii
import re

from common.errors import RequestError
from cortex.dialects.decoding import invalid_value, missing_field, unsupported

IMAGE_BYTES = 20 * 2**20
KINDS = ("png", "jpeg", "gif", "webp")
_DATA_URI = re.compile(r"data:image/(?P<kind>[a-z.+-]+);base64,(?P<data>.*)", re.DOTALL)


def refuse_image(url: object, path: str) -> RequestError:
    """Return what is wrong with an image given as a data URI; a good one needs a model with a projector."""
    if url is None:
        return missing_field(path, "a data URI")
    match = _DATA_URI.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        return invalid_value(path, "a data URI such as data:image/png;base64,…; addresses are not fetched")
    return refuse_base64(match["kind"], match["data"], path)


def refuse_base64(kind: object, data: object, path: str) -> RequestError:
    """Return what is wrong with an image of `kind` (the part after `image/`) given as base64."""
    if kind not in KINDS:
        return invalid_value(path, f"an image of one of the kinds {', '.join(KINDS)}")
    if not isinstance(data, str):
        return missing_field(path, "base64")
    if len(data) * 3 // 4 > IMAGE_BYTES:
        return invalid_value(path, f"an image of at most {IMAGE_BYTES >> 20} MiB")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return invalid_value(path, "valid base64")
    return unsupported(path, "the model has no projector for images; send text")
