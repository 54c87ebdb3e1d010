"""`neuron`: parse, build, run."""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from common import log
from common.catalogue import Catalogue, find_catalogue, load_catalogue
from common.errors import ConfigError
from common.revision import ShowVersion
from neuron import key_commands
from neuron.settings import load_settings

DEFAULT_CONFIG = "/etc/neuron/neuron.yaml"

_EPILOG = """\
examples:
  neuron --list-devices                        print a `devices:` block for this host, to paste
  neuron --config neuron.yaml                  serve
  neuron keygen --config neuron.yaml           make this host's key, for a bus beyond loopback
  neuron invite                                print the line that is pasted on a gateway's host; good once, for an hour
  neuron rotate                                make the next key; `neuron rotate --finish` takes it, streams go on
  NEURON_LISTEN=tcp://0.0.0.0:13131 neuron     any key can be overridden; `__` separates levels

stop it with SIGTERM or Ctrl-C: running jobs get `drain_s` to finish; a second signal ends everything at once.
SIGHUP (systemctl reload neuron) takes over a changed models file; a bad one changes nothing.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="neuron",
        description="Serve the GPUs of this host: one llama.cpp process per GPU, behind a ZeroMQ job bus.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    key_commands.add_arguments(parser)
    parser.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG), help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--list-devices", action="store_true", help="print what this host has as YAML, and exit")
    parser.add_argument("--check", action="store_true", help="check the configuration files, and exit")
    parser.add_argument("--version", action=ShowVersion)
    return parser


def main() -> int:
    """Run the program; return its exit status."""
    arguments = build_parser().parse_args()
    try:
        if arguments.command is not None:
            return key_commands.run(arguments)
        return _list_devices() if arguments.list_devices else _serve(arguments.config, check=arguments.check)
    except ConfigError as error:
        print(f"neuron: {error}", file=sys.stderr)
        return 1


def _list_devices() -> int:
    from neuron.devices import host_memory_mb, read_once
    from neuron.discovery import format_device_block

    print(format_device_block(read_once(), host_memory_mb()))
    return 0


def _serve(config: Path, *, check: bool) -> int:
    settings = load_settings(config)
    models_file = find_catalogue(config, settings.models_config)
    catalogue = _read_catalogue(config, settings.models_config)
    log.setup("neuron", format=settings.log.format, level=settings.log.level)
    try:
        import uvloop

        from neuron.daemon import Daemon
        from neuron.devices import find_devices
    except ImportError as error:
        raise ConfigError(f"{error.name} is missing; install the neuron extra: pip install 'helexa[neuron]'") from None
    devices = find_devices(settings)
    if check:
        for device in devices:
            print(f"{device.uuid}: {device.name}, {device.unavailable or f'{device.memory_mb} MiB'}")
        print(f"{config}: ok, {len(catalogue.models)} models in {models_file or 'no models file'}")
        return 0
    if models_file is None:
        logging.getLogger("neuron").info("no models file: models come from the gateway's catalogue")
    return uvloop.run(
        Daemon(
            settings, devices, partial(_read_catalogue, config, settings.models_config), config.resolve().parent
        ).run()
    )


def _read_catalogue(config: Path, models_config: str | None) -> Catalogue:
    models_file = find_catalogue(config, models_config)
    return load_catalogue(models_file) if models_file is not None else Catalogue()


if __name__ == "__main__":
    sys.exit(main())
