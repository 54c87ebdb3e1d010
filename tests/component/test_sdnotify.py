"""What the service manager hears."""

import os
import socket
from pathlib import Path

import pytest

from common.sdnotify import ServiceManager
from tests.support.service_manager import FakeServiceManager


def test_without_a_service_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({})
    manager.ready("serving")
    manager.beat()
    assert not manager.is_present
    assert manager.take("api") is None
    assert not caplog.records


def test_what_the_manager_gave_is_not_for_children() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "LISTEN_PID": "1", "HOME": "/"}
    ServiceManager(environment | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"})
    ServiceManager(environment)
    assert environment == {"HOME": "/"}


def test_readiness_status_and_end_arrive(tmp_path: Path) -> None:
    with FakeServiceManager(tmp_path) as outside:
        manager = ServiceManager({"NOTIFY_SOCKET": outside.address})
        manager.ready("serving")
        manager.status("serving")  # no news
        manager.status("loading x")
        manager.stopping("draining", 2.5)
        outside.wait_for(lambda d: "STOPPING" in d)
    assert outside.heard == [
        {"READY": "1", "STATUS": "serving"},
        {"STATUS": "loading x"},
        {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "2500000"},
    ]


def test_signs_of_life_only_where_they_are_wanted_of_this_process(tmp_path: Path) -> None:
    with FakeServiceManager(tmp_path) as outside:
        base = {"NOTIFY_SOCKET": outside.address, "WATCHDOG_USEC": "1000000"}
        ServiceManager({"NOTIFY_SOCKET": outside.address}).beat()
        ServiceManager({**base, "WATCHDOG_PID": "1"}).beat()
        mine = ServiceManager({**base, "WATCHDOG_PID": str(os.getpid())})
        mine.beat()
        mine.ready("end")
        outside.wait_for(lambda d: "READY" in d)
    assert outside.heard == [{"WATCHDOG": "1"}, {"READY": "1", "STATUS": "end"}]


def test_a_socket_can_be_left_with_the_manager(tmp_path: Path) -> None:
    with FakeServiceManager(tmp_path) as outside, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        ServiceManager({"NOTIFY_SOCKET": outside.address}).keep("api", listener)
        outside.wait_for(lambda d: d.get("FDNAME") == "api")
        assert os.path.sameopenfile(outside.kept["api"], listener.fileno())


def test_a_manager_that_is_gone_is_said_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("serving")
    assert "was not told 'READY=1'" in caplog.text
