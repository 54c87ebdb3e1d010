"""The gateway's configuration files, read together."""

import time
from pathlib import Path

import msgspec

from common.catalogue import Catalogue, find_catalogue, load_catalogue
from common.errors import ConfigError
from cortex.access.key_file import WatchedKeys, key_file
from cortex.bus_keys import WatchedBusKeys
from cortex.certificate import Certificate
from cortex.settings import CortexSettings, admin_keys, capture_store, load_settings


class Configuration:
    """All that the files say, read once, before any process is forked."""

    def __init__(self, config_file: Path) -> None:
        """Raise ConfigError if anything in them is unusable."""
        self.file = config_file.absolute()
        self.settings: CortexSettings = load_settings(config_file)
        self.admin_keys = admin_keys(self.settings, config_file)
        self.api_keys = WatchedKeys(key_file(config_file))
        self.known_neurons = WatchedBusKeys(config_file)
        self.models_file = find_catalogue(config_file, self.settings.models_config)
        self.catalogue = Catalogue() if self.models_file is None else load_catalogue(self.models_file)
        self.certificate = self._read_certificate()
        self.capture = capture_store(self.settings, config_file)
        if self.capture is not None:
            self.capture.open()
        self.created = int(time.time())

    def _read_certificate(self) -> Certificate | None:
        chain, key = self.settings.gateway.tls_certificate, self.settings.gateway.tls_key
        if chain is None and key is None:
            return None
        if chain is None or key is None:
            raise ConfigError(
                f"{self.file}: gateway.tls_certificate and gateway.tls_key are set together, or not at all"
            )
        return Certificate(self.file.parent / chain, self.file.parent / key)

    def needs_restart(self, other: "Configuration") -> list[str]:
        """Name the keys in which `other` differs and that only a restart applies: all but the models file's."""
        here, there = msgspec.to_builtins(self.settings), msgspec.to_builtins(other.settings)
        names = []
        for section, value in here.items():
            if isinstance(value, dict):
                names += [f"{section}.{key}" for key in value if value[key] != there[section][key]]
            elif value != there[section]:
                names.append(section)
        if self.admin_keys != other.admin_keys and "gateway.admin_keys" not in names:
            names.append("gateway.admin_keys")
        return [n for n in names if n != "models_config"]
