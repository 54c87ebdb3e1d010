"""API keys: what is written down, who is recognised, what a broken file changes."""

import json
import stat
from pathlib import Path

import pytest

from common.errors import Code, ConfigError, RequestError
from cortex.access.access import Access, Identity
from cortex.access.key_file import NAME, WatchedKeys, create_key, read_keys, revoke_key, rotate_key
from cortex.access.keys import ApiKey, KeyRing, Limits, digest, read_id, spell

NOW = 1_800_000_000.0
ADMIN = "an-admin-key-of-some-length"
FORGED = spell("0" * 8, "0" * 48)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def create(path: Path, **fields: object) -> tuple[ApiKey, str]:
    given = {"comment": "", "role": "use", "models": None, "limits": Limits(), **fields}
    return create_key(path, NOW, **given)  # type: ignore[arg-type]


def identify(access: Access, sent: str | None, path: str = "/v1/models") -> Identity:
    headers = [] if sent is None else [(b"authorization", b"Bearer " + sent.encode())]
    return access.identify(path, headers, "10.0.0.1")


def refusal(access: Access, sent: str | None, path: str = "/v1/models") -> Code:
    with pytest.raises(RequestError) as caught:
        identify(access, sent, path)
    assert sent is None or sent not in caught.value.message
    return caught.value.code


def test_of_a_key_only_its_hash_is_written_down(path: Path) -> None:
    entry, text = create(path, comment="ada", limits=Limits(concurrent=2))
    written = path.read_text()
    assert text not in written
    assert text.split("-")[-1] not in written
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert read_keys(path).recognise(text, NOW) == entry
    assert read_id(text) == entry.id


def test_one_wrong_digit_is_another_key(path: Path) -> None:
    _, text = create(path)
    wrong = text[:-1] + ("0" if text[-1] != "0" else "1")
    assert read_keys(path).recognise(wrong, NOW) is None
    assert read_keys(path).recognise("x" + text, NOW) is None
    assert read_keys(path).recognise("", NOW) is None


def test_a_revoked_key_is_refused_for_good(path: Path) -> None:
    entry, text = create(path)
    revoke_key(path, entry.id, NOW)
    assert read_keys(path).recognise(text, NOW) is None
    assert [k.id for k in read_keys(path).entries()] == [entry.id]
    with pytest.raises(ConfigError, match="is revoked"):
        rotate_key(path, entry.id, NOW, keep_s=0)
    revoke_key(path, entry.id, NOW, forget=True)
    assert not read_keys(path)
    with pytest.raises(ConfigError, match=r"there is no key .*cortex keys list"):
        revoke_key(path, entry.id, NOW)


def test_after_a_rotation_the_old_key_is_valid_as_long_as_was_said(path: Path) -> None:
    entry, old = create(path, comment="ada")
    new = rotate_key(path, entry.id, NOW, keep_s=60)
    ring = read_keys(path)
    assert read_id(new) == entry.id
    assert ring.recognise(new, NOW) == ring.recognise(old, NOW + 59)
    assert ring.recognise(old, NOW + 60) is None
    rotate_key(path, entry.id, NOW, keep_s=0)
    assert read_keys(path).recognise(new, NOW) is None


def test_two_keys_have_rows_of_their_own_and_a_forgotten_one_gives_its_row_back(path: Path) -> None:
    first, second = create(path)[0], create(path)[0]
    assert (first.row, second.row) == (0, 1)
    revoke_key(path, first.id, NOW)
    assert create(path)[0].row == 2
    revoke_key(path, first.id, NOW, forget=True)
    assert create(path)[0].row == 0


def test_a_running_gateway_sees_changes_and_keeps_what_it_knows_of_a_broken_file(path: Path) -> None:
    entry, text = create(path)
    watched = WatchedKeys(path)
    assert not watched.refresh()
    path.write_text("{")
    assert not watched.refresh()
    assert watched.ring.recognise(text, NOW)
    path.unlink()
    assert not watched.refresh()
    assert watched.ring.recognise(text, NOW)
    create(path)
    assert watched.refresh()
    assert watched.ring.find(entry.id) is None


@pytest.mark.parametrize("newer", [{"addresses": ["10.0.0.0/8"]}, {"limits": {"concurrent": 2, "images": 5}}])
def test_a_key_of_a_newer_gateway_is_kept_as_it_is_and_refused_since_its_limits_are_not_known(
    path: Path, newer: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    entry, text = create(path)
    _, other = create(path)
    content = json.loads(path.read_text())
    content["keys"][0].update(newer)
    path.write_text(json.dumps(content))
    ring = WatchedKeys(path).ring
    assert ring.recognise(text, NOW) is None
    assert ring.recognise(other, NOW)
    assert f"key {entry.id} is refused" in caplog.text
    assert create(path)[0].row == 2
    assert json.loads(path.read_text())["keys"][0] == content["keys"][0]
    revoke_key(path, entry.id, NOW)
    assert json.loads(path.read_text())["keys"][0] == content["keys"][0] | {"revoked_at": int(NOW)}


def test_a_file_of_another_version_is_no_reason_to_let_anybody_in(path: Path) -> None:
    path.write_text('{"version": 2, "keys": []}')
    with pytest.raises(ConfigError, match=NAME):
        read_keys(path)


@pytest.mark.parametrize("content", ["", "[]", '{"keys": [{"id": 1}]}', "\xff", '{"keys": [], "kees": []}'])
def test_a_file_that_is_no_list_of_keys_is_named(path: Path, content: str) -> None:
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=NAME):
        read_keys(path)


def test_without_keys_anybody_is_let_in_and_with_the_first_one_nobody_else() -> None:
    ring = KeyRing()
    access = Access(ring=lambda: ring, clock=lambda: NOW)
    assert identify(access, None) == Identity("10.0.0.1", "use", is_anonymous=True)
    assert identify(access, "none").name.startswith("key:")
    text = spell("ab" * 4, "1" * 48)
    entry = ApiKey(id="ab" * 4, hash=digest(text), row=0, created_at=0, revoked_at=1)
    ring = KeyRing([entry])  # one that was revoked lets nobody in either
    assert refusal(access, None) == refusal(access, "none") == refusal(access, text) == Code.INVALID_API_KEY
    assert identify(access, None, "/livez").is_anonymous
    assert identify(Access(anonymous=True, ring=lambda: ring), "none").name == "10.0.0.1"
    assert refusal(Access(anonymous=False), None) == Code.INVALID_API_KEY


def test_a_revoked_key_does_not_become_anonymous() -> None:
    assert refusal(Access(anonymous=True), FORGED) == Code.INVALID_API_KEY


def test_each_role_opens_its_own_doors() -> None:
    texts = {role: spell(id * 8, "1" * 48) for role, id in (("use", "a"), ("admin", "b"), ("metrics", "c"))}
    ring = KeyRing(
        ApiKey(id=text[10:18], hash=digest(text), row=i, created_at=0, role=role)  # type: ignore[arg-type]
        for i, (role, text) in enumerate(texts.items())
    )
    access = Access(ring=lambda: ring, clock=lambda: NOW)
    assert identify(access, texts["use"]).name == "key:aaaaaaaa"
    assert refusal(access, texts["use"], "/fleet/status") == Code.PERMISSION_DENIED
    assert refusal(access, texts["metrics"]) == Code.PERMISSION_DENIED
    assert refusal(access, None, "/fleet/load") == Code.INVALID_API_KEY
    assert identify(access, texts["admin"], "/fleet/load").role == "admin"
    assert identify(access, texts["admin"]).name == "key:bbbbbbbb"
    may = {r: access.may_read_metrics([(b"x-api-key", t.encode())]) for r, t in texts.items()}
    assert may == {"use": False, "admin": True, "metrics": True}
    assert not access.may_read_metrics([])


def test_the_fleet_exists_only_for_admins_that_exist() -> None:
    assert refusal(Access(), ADMIN, "/fleet/status") == Code.NOT_FOUND
    assert identify(Access(frozenset({ADMIN})), ADMIN, "/fleet/status").role == "admin"
    assert refusal(Access(frozenset({ADMIN})), ADMIN[:-1], "/fleet/status") == Code.INVALID_API_KEY


def test_keys_come_before_those_who_have_none() -> None:
    assert Identity("x", "use").priority < Identity("x", "use", is_anonymous=True).priority
