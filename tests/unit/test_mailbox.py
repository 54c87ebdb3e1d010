"""Where a call's events wait for their reader: nothing that came stays untold."""

import asyncio

import pytest

from common.errors import Code, RequestError
from cortex.fleet.contract import Events, Merged
from cortex.fleet.mailbox import Mailbox, Turn

FAILURE = RequestError(Code.WORKER_DIED, "gone")


def test_an_error_that_comes_in_the_same_turn_as_text_is_told_after_it() -> None:
    async def scenario() -> list[Events | RequestError]:
        mailbox, heard = Mailbox(Turn()), list[Events | RequestError]()
        ended = asyncio.Event()

        def take() -> None:
            try:
                heard.append(mailbox.take())
            except RequestError as error:
                heard.append(error)
                ended.set()

        mailbox.listen(take)
        mailbox.put_text(0, "Hel")
        mailbox.put_error(FAILURE)
        await asyncio.wait_for(ended.wait(), 5)
        return heard

    assert asyncio.run(scenario()) == [[(0, "Hel")], FAILURE]


def test_who_waits_gets_the_text_and_then_the_error() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(Turn())
        mailbox.put_text(0, "Hel")
        mailbox.put_error(FAILURE)
        assert await mailbox.next(5) == [(0, "Hel")]
        with pytest.raises(RequestError) as caught:
            await mailbox.next(5)
        assert caught.value is FAILURE

    asyncio.run(scenario())


def take_all(pieces: list[str]) -> list[Events]:
    """Return what a listener takes of pieces that came in one turn of the loop."""

    async def scenario() -> list[Events]:
        mailbox, heard = Mailbox(Turn()), list[Events]()
        mailbox.listen(lambda: heard.append(mailbox.take()))
        for text in pieces:
            mailbox.put_text(0, text)
        for _ in range(3):
            await asyncio.sleep(0)
        return heard

    return asyncio.run(scenario())


def test_a_listener_is_called_once_for_all_that_comes_in_a_turn_and_tokens_stay_apart() -> None:
    assert take_all(["a", "b", "c"]) == [[(0, "a"), (0, "b"), (0, "c")]]


def test_what_is_far_behind_becomes_one_piece() -> None:
    ((event,),) = take_all(list("abcdefghijkl"))
    assert event == (0, "abcdefghijkl")
    assert isinstance(event[1], Merged)
    assert event[1].tokens == 12
