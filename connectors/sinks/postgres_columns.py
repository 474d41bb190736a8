"""A level of a document in Postgres: its typed columns, the indexes of its fields, and values taken out of its JSON."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.errors import DefinitionError

Member = FieldShape | RelationShape
# Postgres' own bound of a name, in bytes.
NAME_BYTES = 63
# Columns that each table has.
SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})

TYPES: dict[Kind, str] = {
    "int": "bigint",
    "decimal": "numeric",
    "float": "double precision",
    "bool": "boolean",
    "text": "text",
    "datetime": "timestamptz",
    "date": "date",
    "time": "time",
    "interval": "interval",
    "uuid": "uuid",
    "bytes": "bytea",
    "json": "jsonb",
}


def typed(shape: Shape, option: str, taken: frozenset[str] = frozenset()) -> tuple[Member, ...]:
    """The members that get a column each; `option` is what the author would leave out where one can't."""
    found = tuple(member for member in shape.members if not member.hidden)
    for member in found:
        if member.name in taken | SYSTEM or len(member.name.encode()) > NAME_BYTES:
            raise DefinitionError(
                f"{shape.name}.{member.name} can't be a column: the name is taken or longer than {NAME_BYTES} bytes; "
                f"leave {option} out."
            )
    return found


def column_type(member: Member) -> str:
    return "jsonb" if isinstance(member, RelationShape) or member.repeated else TYPES[member.kind]


def declared(columns: Sequence[Member]) -> str:
    """The columns as CREATE TABLE has them behind others."""
    return "".join(f",\n  {quoted(member.name)} {column_type(member)}" for member in columns)


def value(member: Member, json: str) -> str:
    """The SQL of a column's value out of the JSON object."""
    type, name = column_type(member), literal(member.name)
    return f"nullif({json} -> {name}, 'null')" if type == "jsonb" else cast(type, f"{json} ->> {name}")


def cast(type: str, text: str) -> str:
    return f"decode({text}, 'base64')" if type == "bytea" else f"({text})::{type}"


def indexed(shape: Shape, columns: Sequence[Member], json: str, path: str) -> str:
    """What an index of the field is of: its column where it has one, else an expression of the JSON object."""
    member, inside_list = _find(shape, path)
    names = {own.name for own in columns}
    if isinstance(member, FieldShape) and column_type(member) != "jsonb" and not inside_list:
        return f"({quoted(path) if path in names else f'({json} #>> {_path(path)})'})"
    first = path.split(".")[0]
    return f"USING gin ({quoted(first) if first in names else f'({json} #> {_path(first)})'} jsonb_path_ops)"


def _find(shape: Shape, path: str) -> tuple[Member, bool]:
    """The member at `customer.id`, and whether a list is on the way."""
    inside_list, level = False, shape
    first, *rest = path.split(".")
    member = _member(level, first, path)
    for name in rest:
        if not isinstance(member, RelationShape):
            raise DefinitionError(f"No index of {path!r}: {member.name} has no fields of its own.")
        inside_list, level = inside_list or member.many, member.item
        member = _member(level, name, path)
    return member, inside_list


def _member(shape: Shape, name: str, path: str) -> Member:
    for member in shape.members:
        if member.name == name and not member.hidden:
            return member
    shown = ", ".join(member.name for member in shape.members if not member.hidden)
    raise DefinitionError(f"No index of {path!r}: {shape.name} has no field {name}; it has {shown}.")


def _path(path: str) -> str:
    return literal("{" + path.replace(".", ",") + "}")


def literal(text: str) -> str:
    """A string as SQL text."""
    return "'" + text.replace("'", "''") + "'"


def quoted(*names: str) -> str:
    """An identifier as SQL text."""
    return sql.Identifier(*names).as_string()
