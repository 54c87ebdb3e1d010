"""A driver of NVIDIA's that does what a test says, for the real processes of a neuron on a host without GPUs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "fake_driver"


class FakeDriver:
    """Its state is a file, which the probe reads at each call."""

    def __init__(self, folder: Path, gpus: Sequence[str]) -> None:
        self._file = folder / "driver.json"
        self._state: dict[str, Any] = {
            "gpus": list(gpus), "lost": [], "held": {}, "events": [], "fails": None, "hangs": False, "slept_s": 0.0,
        }  # fmt: skip
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """For the neuron, whose Python then finds this driver instead of NVIDIA's, and this clock."""
        return {"HELEXA_TEST_DRIVER": str(self._file)}

    def change(self, **values: object) -> None:
        """Set `lost` (GPUs off the bus), `held` (pids by GPU), `fails` (name of an error), `hangs`, or `slept_s`."""
        assert values.keys() <= self._state.keys()
        self._state.update(values)
        self._write()

    def happen(self, gpu: str, xid: int | None) -> None:
        """Have an error event come; None: an ECC error that cannot be corrected."""
        self._state["events"].append({"gpu": gpu, "xid": xid})
        self._write()

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._state))
        os.replace(new, self._file)
