"""A run's settings as JSON: written with a version, read with every name and type checked, old versions included."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from fastvicreg import encoders, methods
from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.registry import unknown
from fastvicreg.train import steps

VERSION = 2
SECTIONS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def to_json(config: TrainConfig) -> str:
    """``config`` as indented JSON, one section an object; method and step have their ``name`` among their settings."""
    content = dataclasses.asdict(config)
    content["method"] = {"name": config.method.name, **content["method"]}
    content["step"] = {"name": config.step.name, **content["step"]}
    return json.dumps({"version": VERSION, **content}, indent=1)


def load(path: str | Path) -> TrainConfig:
    """Read a saved config: a JSON file, or a run's folder that holds ``config.json``."""
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        content = parse_json(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON config: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no config: it holds a {type(content).__name__}, not an object of sections.")
    return from_mapping(content, str(file))


def from_mapping(content: dict[str, Any], origin: str) -> TrainConfig:
    """The inverse of ``to_json`` after parsing; sections and fields that are left out take their defaults.

    ``UserError`` naming ``origin`` for a section, field or value that no config has, and for a later version.
    """
    content = dict(content)
    version = content.pop("version", 1)
    if version not in range(1, VERSION + 1):
        raise UserError(f"{origin} is a config of version {version!r}; this fastvicreg reads up to {VERSION}.")
    for name, values in content.items():
        if not isinstance(values, dict):
            raise UserError(f"{origin}: {name!r} is no section of settings, but {values!r}.")
    if version == 1:
        content = from_version_1(content)
    for name in content:
        if name not in SECTIONS:
            raise UserError(f"{origin}: {unknown('section', name, SECTIONS)}")
    try:
        return TrainConfig(**{name: _section(name, values, origin) for name, values in content.items()})
    except UserError as error:
        raise error if str(error).startswith(origin) else UserError(f"{origin}: {error}") from None


def from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Sections "model" and "objective", as every config had them before methods brought their own settings."""
    sections = {name: dict(values) for name, values in content.items() if name not in ("model", "objective")}
    model, objective = dict(content.get("model", {})), dict(content.get("objective", {}))
    expander = {"expander": model.pop("expander")} if "expander" in model else {}
    if model or objective:  # as every run saved them: its views went one after another
        sections["run"] = {"views": "separate", **sections.get("run", {})}
    if model:
        sections["encoder"] = {**model, **sections.get("encoder", {})}
    if expander or objective:
        name = objective.pop("objective", "vicreg")
        sections["method"] = {"name": name, **expander, **objective, **sections.get("method", {})}
    return sections


def _section(name: str, values: dict[str, Any], origin: str) -> Any:
    import msgspec  # here: --help needs none of it

    kind: type[Any]
    values = dict(values)
    if name == "method":
        kind = methods.config_class(_part(values.pop("name", "vicreg"), "method's name", origin))
    elif name == "step":
        kind = steps.config_class(_part(values.pop("name", "eager"), "step's name", origin))
    elif name == "encoder":
        kind = encoders.config_class(_part(values.get("arch", "resnet50"), "encoder's arch", origin))
    else:
        kind = {"data": DataConfig, "pair": PairConfig, "optim": OptimConfig, "run": RunConfig}[name]
    known = tuple(field.name for field in dataclasses.fields(kind))
    for key in values:
        if key not in known:
            raise UserError(f"{origin}: {unknown(f'field of {name!r}', key, known)}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        field = re.sub(r"^`\$\.?|\W*$", "", path).partition("[")[0]
        raise UserError(f"{origin}: {field} cannot be {values.get(field)!r} ({_lower(reason)}).") from None
    except UnicodeEncodeError as error:  # half of a pair of surrogates where a word is expected
        raise UserError(f"{origin}: {name} holds {error.object!r}, which is no text.") from None


def _part(name: Any, what: str, origin: str) -> str:
    if not isinstance(name, str):
        raise UserError(f"{origin}: the {what} cannot be {name!r} (expected str).")
    return name


def _lower(reason: str) -> str:
    return reason[:1].lower() + reason[1:].replace("`", "")
