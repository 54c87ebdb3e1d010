"""Other programs' descriptions of models, read into profiles. Pure: text in, profiles and what was left out.

llama-swap's config.yaml, llama-server's presets (INI) and ollama's Modelfile. What has no equivalent is noted.
"""

import configparser
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from common.catalogue import Profile
from common.errors import ConfigError
from cortex.cli.llama_flags import gathered, long_name, translate, without_faults

_SERVING = frozenset(
    {"host", "port", "api-key", "api-key-file", "metrics", "no-webui", "timeout", "threads-http", "slots"}
)
"""llama-server's options about being a server: the gateway is that here."""
_PARAMETERS = {
    "num_ctx": "ctx-size", "num_gpu": "gpu-layers", "num_thread": "threads", "num_batch": "batch-size",
    "mirostat_eta": "mirostat-lr", "mirostat_tau": "mirostat-ent",
    **{
        name: name.replace("_", "-")
        for name in (
            "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
            "presence_penalty", "frequency_penalty", "mirostat", "main_gpu",
        )
    },
}  # fmt: skip
"""ollama's parameters, by llama-server's options of the same meaning."""


@dataclass(slots=True)
class Import:
    """What a file has become."""

    models: list[dict[str, Any]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What has no equivalent, each with the model it belongs to."""

    def add(
        self,
        name: str,
        options: Iterable[tuple[str, str]],
        aliases: Iterable[str] = (),
        keys: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a model by llama-server's long options (without dashes); `keys`: what else its profile says."""
        model = re.sub(r"\s+", "-", name.strip())
        given = gathered(options)
        source = _source(given)
        if source is None:
            self.notes.append(f"{model}: left out: it names no GGUF (model or hf-repo)")
            return
        profile: dict[str, Any] = {"id": model, "source": source, **(keys or {})}
        parallel = self._number(model, given, "parallel")
        context = self._number(model, given, "ctx-size")
        if parallel:
            profile["parallel"] = parallel
        each = self._number(model, given, "kv-unified-per-slot")
        is_shared = given.pop("kv-unified", "false") not in ("false", "off", "0")
        if context:  # llama-server's is the pool that all slots share, in equal parts unless it says otherwise
            profile["context"] = each or (context if is_shared else context // (parallel or 1))
            profile["kv_tokens"] = context
        elif each:
            profile["context"] = each
        names = [*aliases, *(a.strip() for a in given.pop("alias", "").split(","))]
        profile["engine"], profile["sampling"], wrong = translate(given)
        wrong += without_faults(profile["engine"], parallel or Profile(id=model, source=source).parallel)
        self.notes += [f"{model}: {w}" for w in wrong]
        for option, value in given.items():
            if option not in _SERVING:
                self.notes.append(f"{model}: {option} {value}".rstrip() + ": no key of a profile")
        profile = {key: value for key, value in profile.items() if value != {}}
        self.models.append(profile)
        for alias in filter(None, names):
            if alias != model:
                self._alias(alias, model)

    def _alias(self, alias: str, model: str) -> None:
        known = self.aliases.setdefault(re.sub(r"\s+", "-", alias), model)
        if known != model:
            self.notes.append(f"{model}: alias {alias}: is taken by {known}")

    def _number(self, model: str, options: dict[str, str], name: str) -> int:
        """Take a positive whole number out of the options; 0 if there is none."""
        text = options.pop(name, "0")
        if not re.fullmatch(r"-?\d+", text):
            self.notes.append(f"{model}: {name} {text}: is no whole number")
            return 0
        return max(0, int(text))


def _source(options: dict[str, str]) -> str | None:
    repo, file, path = (options.pop(k, None) for k in ("hf-repo", "hf-file", "model"))
    if repo:
        return f"hf:{repo.partition(':')[0]}/{file}" if file else f"hf:{repo}"
    if path is None:
        return None
    return f"file:{path}" if path.startswith("/") else path


def parse_arguments(words: list[str]) -> list[tuple[str, str]]:
    """Return the options of a llama-server command line under their long names; flags have an empty value."""
    options = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not _is_option(word):
            continue
        name, has_value, value = word.lstrip("-").partition("=")
        if not has_value and at < len(words) and not _is_option(words[at]):
            value = words[at]
            at += 1
        options.append((long_name(name), value))
    return options


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d*\.?\d*", word)


def read_llama_swap(text: str) -> Import:
    """Read llama-swap's configuration. Raises ConfigError."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if not isinstance(data, dict) or not isinstance(data.get("models"), dict):
        raise ConfigError("models: is missing; a llama-swap configuration has a map of models there")
    result = Import()
    macros = _macros(data.get("macros"))
    for name, row in data["models"].items():
        if not isinstance(row, dict) or not isinstance(row.get("cmd"), str):
            raise ConfigError(f"models.{name}.cmd: must be text: the command that serves the model")
        command = _expand(row["cmd"], {**macros, **_macros(row.get("macros")), "MODEL_ID": str(name)})
        try:
            words = shlex.split(command.replace("\\\n", " "), comments=True)
        except ValueError as error:
            raise ConfigError(f"models.{name}.cmd: {error}") from None
        ttl_s = row.get("ttl")
        has_ttl = isinstance(ttl_s, int | float) and ttl_s > 0  # 0 and -1: never, or as the file's globalTTL says
        result.add(
            str(name),
            parse_arguments(words),
            [str(a) for a in row.get("aliases") or []],
            {"ttl_s": ttl_s} if has_ttl else {},
        )
        known_keys = ("cmd", "aliases", "macros", "proxy", "checkEndpoint", "ttl", "name", "description")
        rest = [k for k in row if k not in known_keys]
        result.notes += [f"{name}: {key}: no key of a profile" for key in rest]
    known = ("models", "macros", "startPort", "healthCheckTimeout")
    result.notes += [f"{key}: no equivalent in a models file" for key in data if key not in known]
    return result


def _macros(data: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in data.items()} if isinstance(data, dict) else {}


def _expand(text: str, macros: dict[str, str]) -> str:
    for _ in range(len(macros) + 1):  # a macro may use those before it
        text = re.sub(r"\$\{([\w-]+)\}", lambda m: macros.get(m[1], m[0]), text)
    return text


def read_preset(text: str) -> Import:
    """Read the presets of llama-server's router mode. Raises ConfigError."""
    parser = configparser.RawConfigParser(strict=True, delimiters=("=",), comment_prefixes=(";", "#"))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys keep their case
    try:
        parser.read_string("[ top ]\n" + text)
    except configparser.Error as error:
        raise ConfigError(" ".join(str(error).split())) from None
    shared = dict(parser["*"]) if parser.has_section("*") else {}
    result = Import()
    for name in parser.sections():
        if name in (" top ", "*"):
            continue
        options = [(long_name(k), v) for k, v in {**shared, **parser[name]}.items()]
        if not {"model", "hf-repo"} & {k for k, _ in options} and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
            options.append(("hf-repo", name))
        result.add(name, [(k, "" if v in ("true", "on") else v) for k, v in options])
    return result


def read_modelfile(text: str, name: str) -> Import:
    """Read ollama's Modelfile; `name` becomes the model's id. Raises ConfigError."""
    result = Import()
    options: list[tuple[str, str]] = []
    unknown = []
    for keyword, value in _instructions(text):
        if keyword == "FROM":
            options += _from(value)
            if not options:
                unknown.append(f"FROM {value}: a model of ollama's own library; name a GGUF file or hf.co/ORG/REPO")
        elif keyword == "PARAMETER" and (words := value.split(None, 1))[0] in _PARAMETERS and len(words) == 2:
            options.append((_PARAMETERS[words[0]], words[1].strip('"')))
        else:
            unknown.append(f"{keyword} {value.splitlines()[0] if value else ''}".rstrip() + ": no key of a profile")
    if not any(k == "FROM" for k, _ in _instructions(text)):
        raise ConfigError("FROM: is missing; a Modelfile begins with it")
    result.add(name, options)
    result.notes += [f"{name}: {u}" for u in unknown]
    return result


def _from(value: str) -> list[tuple[str, str]]:
    match = re.fullmatch(r"(?:hf\.co|huggingface\.co)/(\S+)", value)
    if match:
        return [("hf-repo", match[1])]
    return [("model", value)] if "/" in value or PurePosixPath(value).suffix == ".gguf" else []


def _instructions(text: str) -> list[tuple[str, str]]:
    """Return (KEYWORD, value) pairs; values may be in quotes or triple quotes over several lines."""
    pattern = re.compile(r'^[ \t]*([A-Za-z]+)[ \t]+(?:"""(.*?)"""|(.*?))[ \t]*$', re.MULTILINE | re.DOTALL)
    pairs = []
    for match in pattern.finditer(re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)):
        value = match[2] if match[2] is not None else match[3].strip().strip('"')
        pairs.append((match[1].upper(), value.strip()))
    return pairs


READERS: dict[str, Callable[[str, str], Import]] = {
    "llama-swap": lambda text, name: read_llama_swap(text),
    "llama-server-preset": lambda text, name: read_preset(text),
    "ollama": read_modelfile,
}
"""By the name on the command line: (text, id for a file that names none) → what it has become."""
