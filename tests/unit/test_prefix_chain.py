"""The prefix chain: what a conversation's next turn has in common with the one before."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.messages import Chat, Text, TokenIds
from cortex.fleet.prefix import LINKS, chain

SYSTEM = {"role": "system", "content": "be brief"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@given(st.lists(st.text(max_size=5), min_size=1, max_size=8), st.lists(st.text(max_size=5), max_size=4))
def test_a_longer_conversation_continues_the_chain(turns: list[str], more: list[str]) -> None:
    short = chain(Chat(messages=[SYSTEM, *map(user, turns)]))
    assert chain(Chat(messages=[SYSTEM, *map(user, turns + more)]))[: len(short)] == short


def test_the_first_link_is_the_system_prompt_alone() -> None:
    one, two = chain(Chat(messages=[SYSTEM, user("a")])), chain(Chat(messages=[SYSTEM, user("b")]))
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert chain(Chat(messages=[user("a")]))[0] != one[0]


def test_a_changed_message_changes_everything_after_it() -> None:
    one = chain(Chat(messages=[SYSTEM, user("a"), user("x"), user("y")]))
    two = chain(Chat(messages=[SYSTEM, user("a"), user("z"), user("y")]))
    assert one[:2] == two[:2]
    assert not set(one[2:]) & set(two[2:])


def test_a_longer_text_continues_the_chain_of_its_whole_pieces() -> None:
    short, long = chain(Text(text="x" * 2048)), chain(Text(text="x" * 3000))
    assert long[:3] == short
    assert chain(TokenIds(ids=list(range(256))))[:3] == chain(TokenIds(ids=list(range(400))))[:3]


def test_only_the_last_links_of_a_long_chain_are_sent() -> None:
    assert len(chain(Chat(messages=[user(str(n)) for n in range(100)]))) == LINKS


def test_what_cannot_be_written_as_json_has_a_chain_all_the_same() -> None:
    assert len(chain(Chat(messages=[{"role": "user", "content": "x", "n": 2**70}]))) == 2
    assert len(chain(Text(text="\ud800"))) == 2
