"""The page of the gRPC calls, from the comments in proto/."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc_tools
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from manual.markdown import code, table

ROOT = Path(__file__).resolve().parent.parent.parent
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_MESSAGE, _MESSAGE_ENUM, _ENUM_VALUE, _SERVICE_METHOD = 2, 3, 4, 2, 2
"""Field numbers in descriptor.proto: the path to a thing, by which its comment is found."""
_HEAD = """\
# gRPC

The control plane, port 7071. Names in capitals are gRPC statuses; the word behind one is the error's code, which
travels in the trailing metadata `memgrid-error-code`. The files are in `proto/memgrid/v1`; fields are only ever
added.

"""


def page() -> str:
    """Markdown."""
    return _HEAD + "\n".join(_File(each).text() for each in _described().file if each.package == "memgrid.v1")


def _described() -> FileDescriptorSet:
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "all"
        words = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", "--include_source_info"]
        if protoc.main([*words, f"--descriptor_set_out={out}", *protos]) != 0:
            raise SystemExit("protoc failed; see above")
        return FileDescriptorSet.FromString(out.read_bytes())


class _File:
    """One .proto file with its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): (place.leading_comments or place.trailing_comments)
            for place in file.source_code_info.location
        }

    def text(self) -> str:
        parts = [f"## {self._file.name}\n"]
        for number, service in enumerate(self._file.service):
            parts.append(self._service(service, (_FILE_SERVICE, number)))
        for number, message in enumerate(self._file.message_type):
            parts.append(self._message(message, (_FILE_MESSAGE, number), ""))
        for number, enum in enumerate(self._file.enum_type):
            parts.append(self._enum(enum, (_FILE_ENUM, number), ""))
        return "\n".join(parts)

    def _service(self, service: Any, path: tuple[int, ...]) -> str:
        parts = []
        for number, method in enumerate(service.method):
            asked, answered = (f"{'stream ' * flows}{_short(name)}" for name, flows in (
                (method.input_type, method.client_streaming), (method.output_type, method.server_streaming)
            ))  # fmt: skip
            said = self._comment((*path, _SERVICE_METHOD, number))
            parts.append(f"### {service.name}.{method.name}\n\n{code(f'{asked} → {answered}')}\n\n{said}\n")
        return "\n".join(parts)

    def _message(self, message: Any, path: tuple[int, ...], outer: str) -> str:
        if message.options.map_entry:
            return ""
        name = f"{outer}{message.name}"
        rows = [
            (code(field.name), code(_type(field, message)), self._comment((*path, _MESSAGE_FIELD, number)))
            for number, field in enumerate(message.field)
        ]
        body = table(("field", "type", "means"), rows) or "No fields.\n"
        parts = [f"### {name}\n", self._comment(path) + "\n", body]
        for number, inner in enumerate(message.nested_type):
            parts.append(self._message(inner, (*path, _MESSAGE_MESSAGE, number), f"{name}."))
        for number, enum in enumerate(message.enum_type):
            parts.append(self._enum(enum, (*path, _MESSAGE_ENUM, number), f"{name}."))
        return "\n".join(part for part in parts if part.strip())

    def _enum(self, enum: Any, path: tuple[int, ...], outer: str) -> str:
        rows = [
            (code(value.name), str(value.number), self._comment((*path, _ENUM_VALUE, number)))
            for number, value in enumerate(enum.value)
        ]
        body = table(("value", "number", "means"), rows)
        return "\n".join([f"### {outer}{enum.name}\n", self._comment(path) + "\n", body])

    def _comment(self, path: Sequence[int]) -> str:
        return " ".join(self._comments.get(tuple(path), "").split())


def _type(field: Any, message: Any) -> str:
    name = _short(field.type_name) or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    for entry in message.nested_type:
        if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
            key, value = entry.field
            return f"map<{_type(key, entry)}, {_type(value, entry)}>"
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _short(name: str) -> str:
    return name.removeprefix(".").removeprefix("memgrid.v1.").removeprefix("google.protobuf.")
