"""The tables of a projection version in Postgres, their readers' views, and the SQL over both, made from a document's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.sinks.postgres_children import CREATE_LISTS, KEEP_LISTS_PLAIN, Child, child, moving
from connectors.sinks.postgres_columns import NAME_BYTES, Member, declared, indexed, quoted, typed, value
from connectors.sinks.postgres_layout import OWN, Layout
from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

OPTIONS = ("children", "columns", "indexes")
SCHEMA = "read_models"
CHECKPOINTS = "cdc_checkpoints"
STAGING = "cdc_staging"

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
    children: tuple[Child, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        known(self.options)
        children = [self._child(name) for name in dict.fromkeys(named(self.options, "children"))]
        object.__setattr__(self, "children", tuple(children))
        if self.options.get("columns", False):
            columns = typed(self.shape, "columns=True", frozenset({"document"}))
            inside = {own.name for own in children}
            object.__setattr__(self, "columns", tuple(column for column in columns if column.name not in inside))
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
        return f"{self.view_name}_{self._version}"

    @property
    def _version(self) -> str:
        return self.projection.rpartition("-")[2].replace(".", "_")

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
        return [
            f"CREATE TABLE IF NOT EXISTS {self.checkpoints}(\n  target text PRIMARY KEY, epoch bigint NOT NULL, owner text NOT NULL,\n"
            "  offsets jsonb NOT NULL DEFAULT '{}', watermark jsonb NOT NULL DEFAULT '{}', state jsonb NOT NULL DEFAULT '{}')",
            f"CREATE TABLE IF NOT EXISTS {self.table}(\n"
            '  _id text COLLATE "C" PRIMARY KEY,\n'
            "  document jsonb CONSTRAINT is_a_json_object CHECK (jsonb_typeof(document) = 'object'),\n"
            "  _revision bigint NOT NULL,\n  _epoch bigint NOT NULL,\n  _deleted boolean NOT NULL"
            f"{declared(self.columns)})",
            # a deleted document's revision is remembered until the next owner claims: then they are found by this
            f"CREATE INDEX IF NOT EXISTS {self._index(self.table_name, 'deleted')} ON {self.table}(_id) WHERE _deleted",
            *(statement for own in self.children for statement in own.ddl()),
            *self._indexes(),
        ]

    @property
    def layout(self) -> Layout:
        """The tables as `ddl` makes them."""
        columns = (*OWN, *(member.name for member in self.columns))
        lists = tuple(own.layout for own in self.children)
        return Layout(self.schema, self.view_name, self.table_name, columns, lists)

    def insert(self) -> str:
        """From the staging table, guarded by the revision; parameters: `epoch`, `start` and `end` of n. Returns the ids written."""
        names = [quoted(member.name) for member in self.columns]
        written = ["_id", "document", "_revision", "_epoch", "_deleted", *names]
        parsed = f"SELECT id, revision, document::jsonb AS document FROM {STAGING} WHERE n >= %(start)s AND n < %(end)s ORDER BY id"
        # OFFSET 0 keeps Postgres from parsing the text again for each column
        before, document, rows = "", "document", f"({parsed} OFFSET 0) s"
        if self.children:
            before, document, rows = f"{moving(parsed, [own.name for own in self.children])} ", "document - moved", "s"
        typed_values = (value(member, "document") for member in self.columns)
        values = ["id", document, "revision", "%(epoch)s", "document IS NULL", *typed_values]
        updated = ", ".join(f"{name} = excluded.{name}" for name in written[1:])
        return (
            f"{before}INSERT INTO {self.table} AS t({', '.join(written)}) SELECT {', '.join(values)} FROM {rows}"
            f" ON CONFLICT (_id) DO UPDATE SET {updated} WHERE t._revision < excluded._revision RETURNING _id"
        )

    @property
    def staging(self) -> tuple[str, ...]:
        """What a connection that writes needs."""
        lists = (CREATE_LISTS, KEEP_LISTS_PLAIN) if self.children else ()
        return (CREATE_STAGING, KEEP_STAGING_PLAIN, *lists)

    def replace(self) -> list[str]:
        """The lists of documents that were just written; parameter of each: their ids."""
        return [statement for own in self.children for statement in own.replace()]

    def _child(self, name: str) -> Child:
        made = Layout(self.schema, self.view_name, self.table_name)
        return child(self.shape, name, self.schema, made.list_view(name), self._version, made.marker)

    def _indexes(self) -> Iterator[str]:
        children = {own.name: own for own in self.children}
        for path in named(self.options, "indexes"):
            first, _, rest = path.partition(".")
            if (own := children.get(first)) is None:
                table, name, of = self.table_name, path, indexed(self.shape, self.columns, "document", path)
            else:
                table, (name, of) = own.table_name, own.indexed(rest)
            yield f"CREATE INDEX IF NOT EXISTS {self._index(table, name)} ON {quoted(self.schema, table)} {of}"

    def _index(self, table_name: str, of: str) -> str:
        name = f"{table_name}_{of}"
        if len(name.encode()) > NAME_BYTES:
            raise DefinitionError(
                f"The index of {of!r} would be called {name}, which is longer than {NAME_BYTES} bytes."
            )
        return quoted(name)


def ddl(target: Target, projection: str, shape: Shape) -> str:
    """What `cdc preview --as ddl` shows, and what `prepare` and `switch` run."""
    own = Tables(target.name, projection, shape, target.options)
    views = (view_ddl(own.schema, *view) for view in own.layout.views())
    return ";\n".join([own.create_schema, *own.ddl(), *views]) + ";\n"


def list_views(target: Target) -> list[str]:
    """The views of the target's lists; what can't be one is said by `ddl`."""
    found = target.options.get("children", ())
    return [f"{target.name}_{name}" for name in found] if isinstance(found, (list, tuple)) else []


def view_ddl(schema: str, name: str, shown: str, *, replace: bool = True) -> str:
    return f"CREATE {'OR REPLACE ' if replace else ''}VIEW {quoted(schema, name)} AS\n  {shown}"


def known(options: Mapping[str, object]) -> None:
    """Refuse options that no one reads."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise DefinitionError(f"Postgres targets have no option {', '.join(unknown)}; known are {', '.join(OPTIONS)}.")
    if not isinstance(options.get("columns", False), bool):
        raise DefinitionError(f"The Postgres option columns={options['columns']!r} is neither True nor False.")


def named(options: Mapping[str, object], option: str) -> Sequence[str]:
    """The fields that the author names in `indexes` or `children`."""
    found = options.get(option, ())
    if not isinstance(found, (list, tuple)) or not all(isinstance(name, str) for name in found):
        example = "['email', 'customer.id']" if option == "indexes" else "['lines']"
        raise DefinitionError(f"The Postgres option {option}={found!r} is no list of fields: write {option}={example}.")
    return list(found)
