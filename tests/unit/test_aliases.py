"""Names of models: what they stand for, which of two models is used, and what they say in place of a request."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Alias, Catalogue, Profile, load_catalogue
from common.engine_options import SamplingDefaults
from common.errors import ConfigError, RequestError
from common.messages import Chat, Sampling, Text
from cortex.dialects.canonical import ANONYMOUS_PRIORITY, ORDINARY_PRIORITY, Generation, fill, fill_input, rank
from cortex.fleet.aliases import find
from cortex.fleet.listing import list_models, resolve
from tests.support.fake_neuron import model_state
from tests.unit.test_view_listing import node

IDS = {"small", "big", "odd[1m]"}
ALIASES = {
    "gpt-4o": "big", "gpt-*": "small", "claude-*": "big", "claude-*haiku*": "small", "claude-opus-4": "big",
    "*": "small", "a.b*": "big", "*-x": "big", "y-*": "small",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("small", "small"),
        ("gpt-4o", "big"),
        ("gpt-4o-mini", "small"),
        ("claude-sonnet-4-5", "big"),
        ("claude-3-5-haiku-latest", "small"),
        ("claude-opus-4[1m]", "big"),
        ("claude-3-haiku[1m]", "small"),
        ("big[1m]", "big"),
        ("odd[1m]", "odd[1m]"),
        ("a.b1", "big"),
        ("aXb1", "small"),
        ("y-x", "big"),
        ("anything else", "small"),
    ],
)
def test_an_exact_name_counts_before_the_longest_pattern_and_a_suffix_for_nothing(name: str, target: str) -> None:
    assert find(name, IDS, ALIASES) == target


def test_a_name_that_nothing_fits_is_unknown() -> None:
    assert find("llama", IDS, {"gpt-*": "big"}) is None
    assert find("", IDS, {"gpt-*": "big"}) is None


TITLES = Alias(model="small", other="big")
CATALOGUE = Catalogue(
    models=[Profile(id="small", source="s"), Profile(id="big", source="b")],
    aliases={"claude-*haiku*": TITLES, "main": "big"},
)


@pytest.mark.parametrize(
    ("resident", "used"),
    [(["small"], "small"), (["big"], "big"), ([], "big"), (["small", "big"], "small")],
)
def test_a_second_choice_is_used_while_the_first_is_not_resident(resident: list[str], used: str) -> None:
    nodes = [node("a", *(model_state(m) for m in resident))]
    assert resolve("claude-3-haiku", nodes, CATALOGUE) == (used, TITLES)
    unloaded = node("b", *(model_state(m, status="unloaded", replicas=[]) for m in ("small", "big")))
    assert resolve("claude-3-haiku", [*nodes, unloaded], CATALOGUE)[0] == used


def test_a_model_on_its_way_is_as_good_as_resident() -> None:
    nodes = [node("a", model_state("small", status="loading"))]
    assert resolve("claude-3-haiku", nodes, CATALOGUE)[0] == "small"


def test_patterns_are_shown_with_their_model_and_not_listed_as_models() -> None:
    entries = {e["id"]: e for e in list_models([], CATALOGUE, 1)}
    assert entries.keys() == {"small", "big", "main"}
    assert entries["small"]["aliases"] == ["claude-*haiku*"]
    with pytest.raises(RequestError):
        resolve("claude-opus", [], CATALOGUE)


SAYING = Alias(
    model="small",
    sampling=SamplingDefaults(temperature=0.2, top_k=5),
    chat_template_kwargs={"style": "short"},
    reasoning_effort="none",
    priority=120,
)


def test_an_alias_says_what_a_request_leaves_open() -> None:
    chat = Chat(messages=[], template_kwargs={"style": "long"})
    asked = Generation(model="a", inputs=[chat, Text(text="x")], sampling=Sampling(top_k=9, seed=1))
    filled = fill(asked, SAYING)
    assert filled.sampling == Sampling(top_k=9, seed=1, temperature=0.2)
    assert isinstance(filled.inputs[0], Chat)
    assert filled.inputs[0].template_kwargs == {"style": "long", "enable_thinking": False, "thinking": False}
    assert filled.inputs[1] == asked.inputs[1]
    assert fill(asked, None) == asked


def test_a_request_that_asks_for_thought_gets_it() -> None:
    chat = Chat(messages=[], template_kwargs={"enable_thinking": True, "reasoning_effort": "high"})
    arguments = fill_input(chat, SAYING).template_kwargs
    assert (arguments["enable_thinking"], arguments["reasoning_effort"]) == (True, "high")


@pytest.mark.parametrize(
    ("client", "alias", "priority"),
    [
        (100, 50, 50),
        (100, 120, 120),
        (100, None, 100),
        (100, 0, 0),
        (100, 5000, 999),
        (1100, 50, 1050),
        (1100, 0, 1000),
    ],
)
def test_an_alias_moves_the_priority_of_whoever_asks(client: int, alias: int | None, priority: int) -> None:
    assert rank(client, Alias(model="m", priority=alias)) == priority


@given(with_key=st.none() | st.integers(0, 10**6), without=st.none() | st.integers(0, 10**6))
def test_no_alias_lets_those_without_a_key_come_before_those_with_one(
    with_key: int | None, without: int | None
) -> None:
    keyed = rank(ORDINARY_PRIORITY, Alias(model="m", priority=with_key))
    assert keyed < rank(ANONYMOUS_PRIORITY, Alias(model="m", priority=without))


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ("{a: {model: x}}", "aliases.a: no model 'x' in this file; known: m"),
        ("{a: {model: m, else: y}}", "aliases.a: no model 'y' in this file"),
        ("{a: {model: m, other: m}}", "aliases.a.other: unknown key; allowed here: .*else.*priority"),
        ("{a: {else: m}}", "missing required field `model`"),
        ("{a: {model: m, reasoning_effort: much}}", "allowed: .*minimal"),
        ("{a: {model: m, sampling: {top_p: 3}}}", "top_p"),
        ("{m: m}", "also the id of a model"),
    ],
)
def test_an_alias_of_nothing_or_with_a_wrong_key_is_refused(tmp_path: Path, aliases: str, words: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(f"models: [{{id: m, source: m.gguf}}]\naliases: {aliases}")
    with pytest.raises(ConfigError, match=words):
        load_catalogue(path)


def test_an_alias_in_full_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "models: [{id: m, source: m.gguf}, {id: n, source: n.gguf}]\n"
        "aliases: {'claude-*': {model: m, else: n, sampling: {top_k: 3}, priority: 5}, d: n}"
    )
    catalogue = load_catalogue(path)
    assert catalogue.aliases["claude-*"] == Alias(model="m", other="n", sampling=SamplingDefaults(top_k=3), priority=5)
    assert catalogue.targets() == {"claude-*": "m", "d": "n"}
    assert catalogue.resolve("d") == "n"
