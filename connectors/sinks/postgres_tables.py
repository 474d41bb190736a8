"""The table of a projection version in Postgres, its reader's view, and the SQL over both, made from a document's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import sql

from pipeline.authoring.projection import Target
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.errors import DefinitionError

OPTIONS = ("columns", "indexes")
SCHEMA = "read_models"
CHECKPOINTS = "cdc_checkpoints"
STAGING = "cdc_staging"
# Postgres' own bound of a name, in bytes.
NAME_BYTES = 63

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
Member = FieldShape | RelationShape

CREATE_STAGING = (
    f"CREATE TEMP TABLE IF NOT EXISTS {STAGING}(n int PRIMARY KEY, id text, revision bigint, document text)"
    " ON COMMIT DELETE ROWS"
)
SEEN = (
    "SELECT DISTINCT c.relname FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid AND d.classid = 'pg_rewrite'::regclass"
    " JOIN pg_class c ON c.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass AND c.relkind = 'r'"
    " WHERE r.ev_class = to_regclass(%s)"
)
"""The table that readers see through a view."""
# What is only passing through is not worth compressing.
KEEP_STAGING_PLAIN = f"ALTER TABLE {STAGING} ALTER document SET STORAGE EXTERNAL"


@dataclass(frozen=True, slots=True)
class Tables:
    """What one version has in the database. `target`: `crm.customer_cards`; `projection`: `customers-v3.2`."""

    target: str
    projection: str
    shape: Shape
    options: Mapping[str, object]
    columns: tuple[Member, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        known(self.options)
        if self.options.get("columns", False):
            object.__setattr__(self, "columns", _columns(self.shape))
        self.ddl()  # raises where an index is of nothing

    @property
    def schema(self) -> str:
        schema, dot, _ = self.target.rpartition(".")
        return schema if dot else SCHEMA

    @property
    def view_name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def table_name(self) -> str:
        """`customer_cards_v3_2`: the view's name with the version, and the build where it is not the first."""
        return f"{self.view_name}_{self.projection.rpartition('-')[2].replace('.', '_')}"

    @property
    def table(self) -> str:
        return quoted(self.schema, self.table_name)

    @property
    def view(self) -> str:
        return quoted(self.schema, self.view_name)

    @property
    def checkpoints(self) -> str:
        return quoted(self.schema, CHECKPOINTS)

    @property
    def create_schema(self) -> str:
        return f"CREATE SCHEMA IF NOT EXISTS {quoted(self.schema)}"

    def ddl(self) -> list[str]:
        """The statements that `prepare` runs; each may be run again."""
        typed = "".join(f",\n  {quoted(member.name)} {_type(member)}" for member in self.columns)
        return [
            f"CREATE TABLE IF NOT EXISTS {self.checkpoints}(\n  target text PRIMARY KEY, epoch bigint NOT NULL, owner text NOT NULL,\n"
            "  offsets jsonb NOT NULL DEFAULT '{}', watermark jsonb NOT NULL DEFAULT '{}', state jsonb NOT NULL DEFAULT '{}')",
            f"CREATE TABLE IF NOT EXISTS {self.table}(\n"
            '  _id text COLLATE "C" PRIMARY KEY,\n'
            "  document jsonb CONSTRAINT is_a_json_object CHECK (jsonb_typeof(document) = 'object'),\n"
            "  _revision bigint NOT NULL,\n  _epoch bigint NOT NULL,\n  _deleted boolean NOT NULL"
            f"{typed})",
            # a deleted document's revision is remembered until the next owner claims: then they are found by this
            f"CREATE INDEX IF NOT EXISTS {self._index('deleted')} ON {self.table}(_id) WHERE _deleted",
            *self._indexes(),
        ]

    def view_ddl(self, *, replace: bool) -> str:
        shown = "".join(f", {quoted(member.name)}" for member in self.columns)
        return (
            f"CREATE {'OR REPLACE ' if replace else ''}VIEW {self.view} AS\n"
            f"  SELECT _id, document, _revision, _epoch{shown} FROM {self.table} WHERE NOT _deleted"
        )

    def insert(self) -> str:
        """From the staging table, guarded by the revision; parameters: epoch, first n, end n. Returns the ids written."""
        names = [quoted(member.name) for member in self.columns]
        written = ["_id", "document", "_revision", "_epoch", "_deleted", *names]
        values = ["id", "document", "revision", "%s", "document IS NULL", *map(_value, self.columns)]
        updated = ", ".join(f"{name} = excluded.{name}" for name in written[1:])
        # OFFSET 0 keeps Postgres from parsing the text again for each column
        return (
            f"INSERT INTO {self.table} AS t({', '.join(written)}) SELECT {', '.join(values)} FROM (SELECT id, revision,"
            f" document::jsonb AS document FROM {STAGING} WHERE n >= %s AND n < %s ORDER BY id OFFSET 0) s"
            f" ON CONFLICT (_id) DO UPDATE SET {updated} WHERE t._revision < excluded._revision RETURNING _id"
        )

    def column_names(self) -> set[str]:
        return {"_id", "document", "_revision", "_epoch", "_deleted", *(member.name for member in self.columns)}

    def _indexes(self) -> Iterator[str]:
        for path in declared(self.options):
            yield f"CREATE INDEX IF NOT EXISTS {self._index(path)} ON {self.table} {self._indexed(path)}"

    def _index(self, path: str) -> str:
        name = f"{self.table_name}_{path}"
        if len(name.encode()) > NAME_BYTES:
            raise DefinitionError(
                f"The index of {path!r} would be called {name}, which is longer than {NAME_BYTES} bytes."
            )
        return quoted(name)

    def _indexed(self, path: str) -> str:
        member, inside_list = _find(self.shape, path)
        column = next((own for own in self.columns if own.name == path), None)
        plain = isinstance(member, FieldShape) and _type(member) != "jsonb"
        if plain and not inside_list:
            return f"({quoted(path) if column is not None else f'(document #>> {_path(path)})'})"
        indexed = quoted(path) if column is not None else f"(document #> {_path(path.split('.')[0])})"
        return f"USING gin ({indexed} jsonb_path_ops)"


def ddl(target: Target, projection: str, shape: Shape) -> str:
    """What `cdc preview --as ddl` shows, and what `prepare` and `switch` run."""
    own = Tables(target.name, projection, shape, target.options)
    return ";\n".join([own.create_schema, *own.ddl(), own.view_ddl(replace=True)]) + ";\n"


def known(options: Mapping[str, object]) -> None:
    """Refuse options that no one reads."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise DefinitionError(f"Postgres targets have no option {', '.join(unknown)}; known are {', '.join(OPTIONS)}.")
    if not isinstance(options.get("columns", False), bool):
        raise DefinitionError(f"The Postgres option columns={options['columns']!r} is neither True nor False.")


def declared(options: Mapping[str, object]) -> Sequence[str]:
    """The fields that the author wants indexes of."""
    found = options.get("indexes", ())
    if not isinstance(found, (list, tuple)) or not all(isinstance(path, str) for path in found):
        raise DefinitionError(
            f"The Postgres option indexes={found!r} is no list of fields: write indexes=['email', 'customer.id']."
        )
    return list(found)


def _columns(shape: Shape) -> tuple[Member, ...]:
    found = tuple(member for member in shape.members if not member.hidden)
    for member in found:
        if member.name == "document" or len(member.name.encode()) > NAME_BYTES:
            raise DefinitionError(
                f"{shape.name}.{member.name} can't be a column: the name is taken or longer than {NAME_BYTES} bytes; "
                "leave columns=True out."
            )
    return found


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


def _type(member: Member) -> str:
    return "jsonb" if isinstance(member, RelationShape) or member.repeated else TYPES[member.kind]


def _value(member: Member) -> str:
    """The SQL of a column's value out of the document."""
    kind, name = _type(member), literal(member.name)
    if kind == "jsonb":
        return f"nullif(document -> {name}, 'null')"
    if kind == "bytea":
        return f"decode(document ->> {name}, 'base64')"
    return f"(document ->> {name})::{kind}"


def _path(path: str) -> str:
    return literal("{" + path.replace(".", ",") + "}")


def literal(text: str) -> str:
    """A string as SQL text."""
    return "'" + text.replace("'", "''") + "'"


def quoted(*names: str) -> str:
    """An identifier as SQL text."""
    return sql.Identifier(*names).as_string()
