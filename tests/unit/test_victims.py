"""Who makes room, rule by rule."""

from hypothesis import given
from hypothesis import strategies as st

from neuron.memory.victims import Tenant, choose_victims, may_go


def names(victims: list[Tenant] | None) -> list[str] | None:
    return None if victims is None else [v.model for v in victims]


def test_the_one_that_was_not_used_for_longest_goes() -> None:
    tenants = [Tenant("new", 100, 100, 9.0), Tenant("old", 100, 100, 1.0)]
    assert names(choose_victims(tenants, 50, priority=100, strategy="lru")) == ["old"]


def test_an_idle_one_goes_before_a_busy_one_that_was_used_earlier() -> None:
    tenants = [Tenant("busy", 100, 100, 1.0, is_busy=True), Tenant("idle", 100, 100, 9.0)]
    assert names(choose_victims(tenants, 50, priority=100, strategy="lru")) == ["idle"]


def test_with_priority_the_lowest_class_goes_first() -> None:
    tenants = [Tenant("low", 100, 50, 9.0), Tenant("old", 100, 100, 1.0)]
    assert names(choose_victims(tenants, 50, priority=100, strategy="priority")) == ["low"]
    assert names(choose_victims(tenants, 50, priority=100, strategy="lru")) == ["old"]


def test_pinned_ones_higher_classes_and_unsettled_ones_stay() -> None:
    for tenant in (
        Tenant("t", 100, 100, 0.0, is_pinned=True),
        Tenant("t", 100, 101, 0.0),
        Tenant("t", 100, 100, 0.0, is_settled=False),
    ):
        assert choose_victims([tenant], 1, priority=100, strategy="lru") is None


def test_nobody_goes_who_is_not_needed() -> None:
    tenants = [Tenant("small", 50, 100, 1.0), Tenant("large", 200, 100, 2.0)]
    assert names(choose_victims(tenants, 150, priority=100, strategy="lru")) == ["large"]


tenants_lists = st.lists(
    st.builds(
        Tenant,
        model=st.uuids().map(str),
        memory_mb=st.integers(1, 500),
        priority=st.sampled_from([50, 100, 150]),
        used_at=st.floats(0, 100),
        is_busy=st.booleans(),
        is_pinned=st.booleans(),
        is_settled=st.booleans(),
    ),
    max_size=8,
)


@given(tenants_lists, st.integers(1, 2000), st.sampled_from([50, 100, 150]), st.sampled_from(["lru", "priority"]))
def test_victims_suffice_are_allowed_to_go_and_are_all_needed(
    tenants: list[Tenant], lacking: int, priority: int, strategy: str
) -> None:
    victims = choose_victims(tenants, lacking, priority=priority, strategy=strategy)  # type: ignore[arg-type]
    allowed = [t for t in tenants if may_go(t, priority) and t.is_settled]
    assert (victims is None) == (sum(t.memory_mb for t in allowed) < lacking)
    if victims is not None:
        freed = sum(v.memory_mb for v in victims)
        assert freed >= lacking
        assert all(v in allowed for v in victims)
        assert all(freed - v.memory_mb < lacking for v in victims)
    assert victims == choose_victims(list(reversed(tenants)), lacking, priority=priority, strategy=strategy)  # type: ignore[arg-type]
