"""A model is downloaded for a request only where its profile says so, once, and those who wait are told how it ends."""

from common.catalogue import Profile, Variant
from common.messages import (
    Abort,
    Done,
    Failed,
    JobKey,
    Load,
    LoadModel,
    Models,
    ModelsReply,
    ModelState,
    Offer,
    Progress,
    Refused,
)
from neuron.supervisor import events
from tests.support.drive import FACTS, Drive, gpu, job, profile

SOURCE = "hf:org/repo:Q4_0"
HUB = Profile(id="m", source=SOURCE, context=1000, kv_tokens=2000, parallel=2, download="on_demand")


def started(*profiles: Profile, absent: tuple[str, ...] = (SOURCE,), **more: object) -> Drive:
    drive = Drive(models=[], **more)  # type: ignore[arg-type]
    drive.absent_paths.update(absent)
    drive.start().connect().connect("ctl", "admin")
    drive.peer_says(Offer(profiles=list(profiles)))
    return drive


def state(drive: Drive, model: str = "m") -> ModelState:
    drive.peer_says(Models(request="r"))
    return next(m for m in drive.told_of(ModelsReply)[-1].models if m.id == model)


def come(drive: Drive, source: str = SOURCE) -> None:
    """Have a file arrive."""
    drive.absent_paths.discard(source)
    drive.feed(events.FetchEnded(source, None))


def errors(drive: Drive) -> list[str]:
    return [i.message for m in drive.told_of(Failed) for i in m.items]


def test_nothing_is_fetched_for_a_request_unless_the_profile_says_so() -> None:
    drive = started(Profile(id="m", source=SOURCE))
    drive.submit(job("j"))
    drive.peer_says(Load(request="l", model="m"), "ctl")
    assert drive.fetching == []
    assert drive.ends() == {"j": "model_loading_failed"}
    assert len(drive.told_of(Refused, "ctl")) == 1


def test_nothing_is_fetched_before_anybody_asks() -> None:
    drive = started(HUB)
    assert (drive.fetching, state(drive).presence, state(drive).status) == ([], "downloadable", "unloaded")


def test_requests_wait_while_the_file_comes_once_for_all_of_them() -> None:
    drive = started(HUB)
    drive.submit(job("one"), job("two"))
    drive.peer_says(Load(request="l", model="m"), "ctl")
    assert drive.fetching == [SOURCE]
    drive.feed(events.FetchMoved(SOURCE, 0.25))
    assert (state(drive).fetching, state(drive).status, state(drive).queued) == (0.25, "unloaded", 2)
    assert [p.fraction for p in drive.told_of(Progress, "ctl")] == [0.25]
    assert drive.sent_to("CPU-0", LoadModel) == []
    come(drive)
    assert (state(drive).fetching, state(drive).presence) == (None, "present")
    for name in ("one", "two"):
        drive.finish(name)
    assert drive.ends() == {"one": "ended", "two": "ended"}
    assert len(drive.told_of(Done, "ctl")) == 1
    drive.check()


def test_models_of_one_file_share_its_fetch() -> None:
    drive = started(HUB, Profile(id="n", source=SOURCE, download="on_demand"))
    drive.submit(job("a"), job("b", "n"))
    assert drive.fetching == [SOURCE]
    come(drive)
    drive.finish("a")
    drive.finish("b")
    assert drive.ends() == {"a": "ended", "b": "ended"}


def test_a_fetch_that_fails_is_said_and_not_tried_with_every_request() -> None:
    drive = started(HUB)
    drive.submit(job("one"))
    drive.feed(events.FetchEnded(SOURCE, "needs 40 GB more, and 2 GB are free"))
    drive.pass_time(5)
    drive.submit(job("two"))
    assert drive.fetching == [SOURCE]
    assert (
        errors(drive)
        == ["model 'm' cannot be loaded: its file could not be fetched: needs 40 GB more, and 2 GB are free"] * 2
    )
    drive.pass_time(30)
    drive.submit(job("three"))
    assert drive.fetching == [SOURCE] * 2
    come(drive)
    drive.finish("three")
    assert drive.ends()["three"] == "ended"


def test_a_request_whose_time_is_over_is_told_how_far_it_was_and_the_fetch_goes_on() -> None:
    drive = started(HUB)
    drive.submit(job("j", budget_ms=2000))
    drive.feed(events.FetchMoved(SOURCE, 0.5))
    drive.pass_time(3)
    assert errors(drive) == ["still waiting after 2 s: the model's file is being fetched, 50% have come"]
    come(drive)
    drive.submit(job("later"))
    drive.finish("later")
    assert drive.fetching == [SOURCE]


def test_a_request_that_is_gone_leaves_nothing_behind() -> None:
    drive = started(HUB)
    drive.submit(job("j"))
    drive.peer_says(Abort(jobs=[JobKey("j", 1)]))
    come(drive)
    assert state(drive).status == "unloaded"
    drive.check()


def test_of_variants_one_that_is_here_is_taken_and_else_the_best_one_is_fetched() -> None:
    variants = [Variant(quant="Q8_0"), Variant(quant="Q4_0"), Variant(source="file:/small.gguf")]
    both = Profile(id="m", source="hf:org/repo", variants=variants, download="on_demand")
    drive = started(both, absent=("hf:org/repo:Q8_0", SOURCE))
    drive.submit(job("j"))
    drive.finish("j")
    assert drive.fetching == []
    drive = started(both, absent=("hf:org/repo:Q8_0", SOURCE, "/small.gguf"))
    drive.submit(job("j"))
    assert drive.fetching == ["hf:org/repo:Q8_0"]
    come(drive, "hf:org/repo:Q8_0")
    drive.finish("j")
    assert drive.machine.host.models["m"].profile.source == "hf:org/repo:Q8_0"


def test_a_variant_that_was_fetched_and_does_not_fit_is_followed_by_the_next_one() -> None:
    variants = [Variant(quant="Q8_0"), Variant(quant="Q4_0")]
    both = Profile(id="m", source="hf:org/repo", context=1000, kv_tokens=2000, variants=variants, download="on_demand")
    drive = started(both, absent=("hf:org/repo:Q8_0", SOURCE), devices=[gpu("GPU-0", 500)])
    large = FACTS.__class__(**{f: getattr(FACTS, f) for f in FACTS.__struct_fields__} | {"file_bytes": 2**32})
    drive.facts_by_path["hf:org/repo:Q8_0"] = large
    drive.submit(job("j"))
    come(drive, "hf:org/repo:Q8_0")
    assert drive.fetching == ["hf:org/repo:Q8_0", SOURCE]
    come(drive)
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}


def test_a_profile_that_changes_meanwhile_does_not_lose_those_who_wait() -> None:
    drive = started(HUB)
    drive.submit(job("j"))
    drive.peer_says(Offer(profiles=[Profile(id="m", source=SOURCE, parallel=3, download="on_demand")]))
    assert drive.fetching == [SOURCE]
    come(drive)
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}
    drive.peer_says(Offer(profiles=[profile("m")]))
    drive.check()
