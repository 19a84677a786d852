"""YAML as fagen uses it: safe, with line numbers in complaints, written in one stroke.

Reading refuses what a person does not mean: unknown tags, repeated keys, anchors. Writing quotes
every string that some YAML reader would take for something else (``12.10``, digests, dates).
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fagen.errors import StoreError

_PLAIN = re.compile(r"(?![yYnN]$|[0-9a-f]{8,}$)[A-Za-z_][A-Za-z0-9_.+-]*( [A-Za-z0-9_.+-]+)*")


class Complaint(ValueError):
    """What is wrong with a document, and on which line (from 1; 0 when unknown)."""

    def __init__(self, line: int, says: str) -> None:
        super().__init__(says)
        self.line, self.says = line, says


class Mapping(dict[str, Any]):
    """A mapping that knows where it and its keys stand."""

    line = 0
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise Complaint(event.start_mark.line + 1, "aliases are not read")
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Mapping:
    made = Mapping()
    made.line, made.lines = node.start_mark.line + 1, {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise Complaint(line, f"the key {key!r} is not text")
        if key in made:
            raise Complaint(line, f"the key {key!r} stands twice")
        made[key] = loader.construct_object(value_node, deep=True)
        made.lines[key] = line
    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str) -> Any:
    """The document, or a Complaint."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        says = " ".join(filter(None, (error.context, error.problem)))
        raise Complaint(mark.line + 1 if mark else 0, says) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, Complaint):
            raise
        raise Complaint(0, str(error).splitlines()[0]) from None


def read(path: Path) -> Any:
    """The document in a file. Raises Complaint for its content, StoreError for the file."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Complaint(0, f"byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


_KINDS = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def mapping(value: Any, line: int, what: str) -> Mapping:
    if not isinstance(value, Mapping):
        raise Complaint(line, f"{what} is not a mapping")
    return value


def field(given: Mapping, name: str, kind: type) -> Any:
    """The value of a key that must be there and of that kind."""
    if name not in given:
        raise Complaint(given.line, f"the key {name!r} is missing")
    value = given[name]
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise Complaint(given.lines[name], f"{name} is {value!r}, which is not {_KINDS[kind]}")
    return value


def only(given: Mapping, names: tuple[str, ...]) -> None:
    """No key but these."""
    for name in given:
        if name not in names:
            raise Complaint(given.lines[name], f"unknown key {name!r}; keys: {', '.join(names)}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class Line(dict[str, Any]):
    """A mapping that is written on one line."""


def _line(dumper: _Dumper, line: Line) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", line, flow_style=True)


def _list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    short = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    resolve: Any = dumper.resolve
    misread = resolve(yaml.ScalarNode, text, (True, False)) != "tag:yaml.org,2002:str"
    style = '"' if misread or not _PLAIN.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(Line, _line)


def dump(document: Any) -> str:
    return yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000,
        default_flow_style=False,
    )


def write(path: Path, text: str) -> None:
    """Replace the file, or leave it as it was: never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        _cannot_write(path, error)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        _cannot_write(path, error)


def _cannot_write(path: Path, error: OSError) -> NoReturn:
    raise StoreError(
        f"{path} cannot be written: {error.strerror}; what it held before is untouched",
        "free some space or check the folder's permissions, then run the same command again",
    ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
