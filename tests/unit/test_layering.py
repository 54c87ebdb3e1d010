"""Imports point inward, and what is expensive or dangerous is imported in one place only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Yield the modules a file imports; with `top_level` only those imported with the file itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def offences(paths: list[Path], forbidden: set[str], *, top_level: bool = False) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imports(path, top_level=top_level)
        if any(module == f or module.startswith(f + ".") for f in forbidden)
    ]


def test_there_is_something_to_check() -> None:
    assert len(files("common")) > 8
    assert len(files("neuron")) > 30
    assert len(files("cortex")) > 20


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("common", {"cortex", "neuron", "llama_cpp", "falcon", "gunicorn", "uvloop"}),
        ("cortex", {"neuron", "llama_cpp"}),
        ("neuron", {"cortex", "falcon", "gunicorn"}),
        ("neuron/ctl", {"neuron.supervisor", "neuron.worker", "neuron.prep", "llama_cpp", "uvloop", "pynvml"}),
        ("neuron/process", {"common", "cortex", "neuron.supervisor", "neuron.broker", "zmq"}),
    ],
)
def test_imports_point_inward(folder: str, forbidden: set[str]) -> None:
    assert offences(files(folder), forbidden) == []


@pytest.mark.parametrize("folder", ["worker", "prep"])
def test_a_child_imports_only_common_itself_and_what_ties_it_to_the_supervisor(folder: str) -> None:
    allowed = (f"neuron.{folder}", "neuron.process.lifeline", "neuron.process.breadcrumb", "neuron.binding")
    pure = {"prep": ("neuron.models.header",)}.get(folder, ())  # bytes of a file to what they say
    strangers = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(f"neuron/{folder}")
        for module in imports(path)
        if module.startswith("neuron.") and not module.startswith((*allowed, *pure)) and module != "neuron.process"
    ]
    assert strangers == []


def test_the_editors_agent_imports_nothing_else_of_the_gateway() -> None:
    strangers = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files("cortex/acp")
        for module in imports(path)
        if module.startswith("cortex.") and not module.startswith("cortex.acp")
    ]
    assert strangers == []


def test_llama_cpp_is_imported_only_where_the_name_of_the_file_says_so() -> None:
    users = {str(p.relative_to(ROOT)) for p in files("common", "cortex", "neuron") if "llama_cpp" in imports(p)}
    assert {"neuron/prep/llama_vocabulary.py", "neuron/worker/llama_engine.py"} <= users
    assert [u for u in users if not u.startswith(("neuron/prep/llama_", "neuron/worker/llama_"))] == []


def test_nvml_is_imported_by_the_probe_only() -> None:
    users = {str(p.relative_to(ROOT)) for p in files("common", "cortex", "neuron") if "pynvml" in imports(p)}
    assert users == {"neuron/probe.py"}


def test_decisions_are_pure() -> None:
    pure = files("neuron/supervisor", "neuron/memory")
    pure += [ROOT / "neuron" / "broker" / n for n in ("jobs.py", "peers.py", "claims.py")]
    pure += [ROOT / "neuron" / "discovery.py"]
    pure += [ROOT / "neuron" / "worker" / n for n in ("planner.py", "slots.py", "stops.py", "sampling.py")]
    pure += files("cortex/dialects") + [
        ROOT / "cortex" / "fleet" / n for n in ("view.py", "routing.py", "placement.py", "prefix.py", "listing.py")
    ]
    forbidden = {"os", "time", "socket", "subprocess", "threading", "asyncio", "zmq", "random", "signal", "httpx"}
    assert offences(pure, forbidden) == []


def test_the_command_lines_need_neither_gateway_nor_engine() -> None:
    command_lines = [
        *files("cortex/acp", "cortex/cli", "neuron/ctl"),
        ROOT / "cortex" / "__main__.py",
        ROOT / "neuron" / "__main__.py",
    ]
    forbidden = {
        "falcon",
        "gunicorn",
        "llama_cpp",
        "uvloop",
        "jinja2",
        "pynvml",
        "prometheus_client",
        "huggingface_hub",
    }
    assert offences(command_lines, forbidden, top_level=True) == []


def test_processes_are_made_and_killed_in_one_place() -> None:
    forbidden = {"subprocess", "multiprocessing"}
    allowed = {ROOT / "neuron" / "process" / "children.py", ROOT / "neuron" / "devices.py", ROOT / "cortex/cli/dev.py"}
    allowed.add(ROOT / "common" / "revision.py")  # asks git, for --version only
    assert offences([p for p in files("common", "cortex", "neuron") if p not in allowed], forbidden) == []
