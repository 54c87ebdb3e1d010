"""The gateway's configuration files, read together."""

import time
from pathlib import Path

from common.catalogue import Catalogue, find_catalogue, load_catalogue
from cortex.settings import CortexSettings, admin_keys, load_settings


class Configuration:
    """All that the files say, read once, before any process is forked."""

    def __init__(self, config_file: Path) -> None:
        """Raise ConfigError if anything in them is unusable."""
        self.file = config_file
        self.settings: CortexSettings = load_settings(config_file)
        self.admin_keys = admin_keys(self.settings, config_file)
        models_file = find_catalogue(config_file, self.settings.models_config)
        self.catalogue = Catalogue() if models_file is None else load_catalogue(models_file)
        self.created = int(time.time())
