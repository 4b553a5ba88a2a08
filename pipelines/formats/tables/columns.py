"""Which columns of a table are the image and its class: by Hugging Face's schema, by name, or as a person says."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.pipelines.formats.beton.layout import LABELS
from fastvicreg.pipelines.formats.keys import Keys

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "data")
"""Names of columns of bytes that hold images, the one to be preferred first."""


class Columns(NamedTuple):
    """What is read of a table."""

    image: str
    nested: bool  # whether it is a struct of "bytes" and perhaps "path"
    paths: bool  # whether it has a "path"
    label: str  # "": none
    classes: tuple[str, ...]  # that the schema names, in the order of their numbers
    named: bool  # whether a person named the label: a row without it is left out
    notes: tuple[str, ...]


def chosen(schema: pa.Schema, keys: Keys, where: Path) -> Columns:
    """The columns of image and label; ``UserError`` where there is no image, or none of the name that ``keys`` say."""
    features = _features(schema)
    image = _image(schema, features, keys.image, where)
    kind = schema.field(image).type
    nested = pa.types.is_struct(kind)
    paths = nested and kind.get_field_index("path") >= 0
    label, notes = _label(schema, features, keys.label, image, where)
    return Columns(image, nested, paths, label, _classes(features.get(label)), bool(keys.label), notes)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """{column: feature} as the ``datasets`` library writes it into the schema; empty where it did not."""
    try:
        return parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}


def _classes(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _image(schema: pa.Schema, features: Mapping[str, Any], asked: str, where: Path) -> str:
    columns = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    if asked:
        if asked not in columns:
            there = ", ".join(columns) or "none"
            raise UserError(f"--image {asked}: {where} has no column of bytes of that name, only {there}.")
        return asked
    typed = [name for name in columns if _type(features.get(name)) == "Image"]
    called = [name for name in IMAGES if name in (typed or columns)]
    found = called[:1] or typed or columns
    if len(found) != 1:
        what = f"the columns {', '.join(found)}" if found else f"no column of bytes among {', '.join(schema.names)}"
        raise UserError(f"{where} has {what}: {'name one by --image' if found else 'its images are elsewhere'}.")
    return found[0]


def _label(
    schema: pa.Schema, features: Mapping[str, Any], asked: str, image: str, where: Path
) -> tuple[str, tuple[str, ...]]:
    """(column, what a person may not expect of the choice)."""
    columns = [name for name in schema.names if name != image and _holds_class(schema.field(name).type)]
    if asked:
        if asked not in columns:
            there = ", ".join(columns) or "none"
            raise UserError(f"--label {asked}: {where} has no column of numbers or text of that name, only {there}.")
        return asked, ()
    typed = [name for name in columns if _type(features.get(name)) == "ClassLabel"]
    called = [name for wanted in LABELS for name in (typed or columns) if name.lower() == wanted]
    found = called[:1] or typed
    others = [name for name in typed if name not in found[:1]]
    if len(found) == 1:
        rest = f", not {', '.join(others)} (--label names another)" if others else ""
        plain = found[0] == "label" and not others
        return found[0], () if plain else (f"{where}: the labels are the column {found[0]!r}{rest}",)
    several = f"{where}: no labels: --label names one of the columns {', '.join(found)}"
    return "", (several,) if found else ()


def _type(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _holds_class(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )  # fmt: skip
