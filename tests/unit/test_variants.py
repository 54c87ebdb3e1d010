"""One id, several ways to serve it: each neuron takes the best that is for it, is there, and fits."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from common.catalogue import Catalogue, Profile, Variant, load_catalogue
from common.engine_options import EngineOptions
from common.errors import ConfigError
from common.messages import Inspect, Load, LoadModel, Submit
from neuron.discovery import Device
from tests.support.drive import FACTS, Drive, cpu, job

LARGE = structs.replace(FACTS, file_bytes=1500 * 2**20)


def model(*variants: Variant, **more: Any) -> Profile:
    return Profile(id="m", source="file:/base.gguf", context=1000, kv_tokens=2000, variants=list(variants), **more)


BEST = Variant(source="file:/best.gguf", context=2000)
GOOD = Variant(source="file:/good.gguf", engine=EngineOptions(cache_type_k="q8_0"))


def start(profile: Profile, memory_mb: int = 2000, **facts: Any) -> Drive:
    drive = Drive(devices=[cpu("CPU-0", memory_mb)], models=[])
    drive.facts |= facts
    drive.start().connect()
    drive.peer_says(Submit(jobs=[job("j")], profile=profile))
    return drive


def served(drive: Drive) -> list[tuple[str, int]]:
    return [(m.path, m.context) for m in drive.sent_to("CPU-0", LoadModel)]


def test_the_best_variant_that_fits_is_loaded() -> None:
    assert served(start(model(BEST, GOOD))) == [("/best.gguf", 2000)]


def test_one_that_does_not_fit_gives_way_to_the_next() -> None:
    drive = Drive(devices=[cpu("CPU-0", 1000)], models=[])
    drive.facts_by_path = {"/best.gguf": LARGE}
    drive.start().connect()
    drive.peer_says(Submit(jobs=[job("j")], profile=model(BEST, GOOD)))
    assert served(drive) == [("/good.gguf", 1000)]
    assert drive.sent_to("CPU-0", LoadModel)[0].engine.cache_type_k == "q8_0"
    assert [m.path for m in drive.sent_to("prep", Inspect)] == ["/best.gguf", "/good.gguf"]
    assert "j" in drive.tasks
    drive.check()


def test_one_whose_layers_do_not_all_fit_a_gpu_gives_way() -> None:
    gpu = Device(uuid="GPU-0", name="small", kind="cuda", memory_mb=600, visible="GPU-0")
    drive = Drive(devices=[gpu], models=[])
    layered = structs.replace(LARGE, layer_bytes=[140 * 2**20] * 10, output_bytes=2**20, host_bytes=2**20)
    drive.facts_by_path = {"/best.gguf": layered}
    drive.start().connect()
    drive.peer_says(Submit(jobs=[job("j")], profile=model(BEST, GOOD)))
    assert [m.path for m in drive.sent_to("GPU-0", LoadModel)] == ["/good.gguf"]


def test_one_whose_file_is_missing_or_that_is_for_other_hosts_is_passed_over() -> None:
    elsewhere = Variant(source="file:/elsewhere.gguf", hosts=["beast"])
    drive = Drive(devices=[cpu("CPU-0")], models=[])
    drive.absent_paths.add("/best.gguf")
    drive.start().connect()
    drive.peer_says(Submit(jobs=[job("j")], profile=model(elsewhere, BEST, GOOD)))
    assert served(drive) == [("/good.gguf", 1000)]
    assert drive.sent_to("prep", Inspect)[0].path == "/good.gguf"


def test_when_the_last_fails_too_the_model_does_and_is_tried_from_the_first_later() -> None:
    drive = Drive(devices=[cpu("CPU-0")], models=[])
    drive.absent_paths |= {"/best.gguf", "/good.gguf"}
    drive.start().connect()
    drive.peer_says(Submit(jobs=[job("j")], profile=model(BEST, GOOD)))
    assert drive.ends() == {"j": "model_loading_failed"}
    drive.absent_paths.remove("/best.gguf")
    drive.pass_time(3)
    drive.submit(job("again"))
    assert served(drive) == [("/best.gguf", 2000)]


def test_a_gateway_that_repeats_the_profile_changes_nothing() -> None:
    drive = start(model(BEST, GOOD))
    drive.peer_says(Load(request="again", model="m", profile=model(BEST, GOOD)))
    drive.pass_time(0.1)
    state = drive.machine.published
    assert state is not None
    assert [r.outdated for r in state.models[0].replicas] == [False]
    assert state.models[0].profile == model(BEST, GOOD).fingerprint


def test_a_quant_names_a_file_of_the_repository() -> None:
    profile = Profile(id="m", source="hf:org/repo", variants=[Variant(quant="Q8_0"), Variant(quant="Q4_K_M")])
    assert [p.source for p in profile.for_host("x")] == ["hf:org/repo:Q8_0", "hf:org/repo:Q4_K_M"]
    assert Profile(id="m", source="a.gguf").for_host("x") == [Profile(id="m", source="a.gguf")]


def test_variants_are_read_with_their_errors_by_name(tmp_path: Path) -> None:
    def read(variant: str) -> Catalogue:
        path = tmp_path / "models.yaml"
        path.write_text(
            f"defaults: {{engine: {{batch: 64}}}}\nmodels:\n- {{id: m, source: 'hf:o/r', variants: [{variant}]}}"
        )
        return load_catalogue(path)

    assert read("{quant: Q8_0, hosts: [a]}").models[0].for_host("a")[0].engine.batch == 64
    assert read("{quant: Q8_0, hosts: [a]}").models[0].for_host("b") == []
    with pytest.raises(ConfigError, match=r"models\[0\].variants\[0\].engine.ubatch: 128 is more than batch"):
        read("{engine: {ubatch: 128}}")
    with pytest.raises(ConfigError, match=r"models\[0\].variants\[0\].quants: unknown key"):
        read("{quants: Q8_0}")
