"""Addresses: `tcp://host:port` is the bus's own spelling, `http://host:port` and `host:port` mean the same."""

import ipaddress
import re

import msgspec

from common.errors import ConfigError

_PATTERN = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?")


class Endpoint(msgspec.Struct, frozen=True):
    """A host and a TCP port."""

    host: str
    port: int

    @property
    def zmq(self) -> str:
        """The address as ZeroMQ spells it."""
        return f"tcp://{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        host = self.host.strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SocketFile(msgspec.Struct, frozen=True):
    """A socket file of this host, through which a neuron is administered."""

    path: str

    @property
    def zmq(self) -> str:
        """The address as ZeroMQ spells it."""
        return f"ipc://{self.path}"

    def __str__(self) -> str:
        return self.path


def parse_endpoint(text: str, key: str) -> Endpoint:
    """Parse an address; `key` is the configuration key or option that errors name. Raises ConfigError."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None or match["scheme"] not in (None, "tcp", "http") or not 0 < int(match["port"]) < 65536:
        raise ConfigError(f"{key}: '{text}' is not an address; write host:port, tcp://host:port or http://host:port")
    host = match["host"]
    return Endpoint("0.0.0.0" if host == "*" else host, int(match["port"]))
