"""What an author may say of relations, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from webs import PythonWeb, Web

from connectors.sinks.elasticsearch_mapping import mapping
from pipeline import Document, constant, derived, left_out, many, one
from pipeline.authoring.shape import shape_of
from pipeline.errors import BadShape


class Tag(Document, source="web.tags"):
    id: int
    label: str


def no_depth_at_all() -> type[Document]:
    class Own(Document, source="web.people"):
        tag: Tag | None = one(via="favourite", depth=0)

    return Own


def a_limit_of_nothing() -> type[Document]:
    class Own(Document, source="web.people"):
        tags: tuple[Tag, ...] = many(by="person_id", limit=0)

    return Own


def a_link_that_leads_nowhere() -> type[Document]:
    class Own(Document, source="web.people"):
        tags: tuple[Tag, ...] = many(through="web.links", by="person_id")

    return Own


def a_count_without_a_limit() -> type[Document]:
    class Own(Document, source="web.people"):
        tags: tuple[Tag, ...] = many(by="person_id")
        more: int = left_out("tags")

    return Own


def a_condition_that_may_leave_nothing() -> type[Document]:
    class Own(Document, source="web.people"):
        tag: Tag = one(via="favourite", where={"label": "a"})

    return Own


def another_number_of_columns() -> type[Document]:
    class Own(Document, source="web.people"):
        tags: tuple[Tag, ...] = many(by="owner", to=("id", "name"))

    return Own


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_depth_at_all, "at least one level"),
        (a_limit_of_nothing, "at least one row"),
        (a_link_that_leads_nowhere, "give both"),
        (a_count_without_a_limit, r"many\(\.\.\., limit=100\)"),
        (a_condition_that_may_leave_nothing, r"write Tag \| None"),
        (another_number_of_columns, "as many columns on both sides"),
    ],
)
def test_a_contradiction_is_refused_with_what_to_write(make: Callable[[], type[Document]], said: str) -> None:
    with pytest.raises(BadShape, match=said):
        shape_of(make())


class Node(Document, source="web.people"):
    parent: Node | None = one(via="parent_id")


def test_a_document_in_itself_says_how_deep() -> None:
    with pytest.raises(BadShape, match=r"Node\.parent: Node contains itself; say how deep: depth=2"):
        shape_of(Node)


def test_the_index_has_a_field_for_each_level_and_none_for_link_tables() -> None:
    properties = mapping(shape_of(Web), {})["properties"]
    assert properties["what"] == {"type": "keyword", "ignore_above": 8191}
    assert properties["more_tags"]["type"] == "long"
    assert set(properties["tags"]["properties"]) == {"id", "label"}
    deep = properties["parent"]["properties"]["parent"]["properties"]["parent"]["properties"]
    assert set(deep) == {"id", "name"}
    assert "children" not in properties["children"]["properties"]


def test_readers_get_the_same_class_with_all_its_fields() -> None:
    document = PythonWeb.model_validate(
        {
            "id": 1,
            "name": "x",
            "tags": [{"id": 1, "label": "a"}],
            "more_tags": 3,
            "children": [{"id": 2, "name": None}],
        }
    )
    assert document.what == 'per"son'
    assert document.tagged == "a+3"
    assert document.children[0].parent is None and document.children[0].children == ()


def test_a_constant_of_any_kind_is_in_the_document() -> None:
    class Fixed(Document, source="web.tags"):
        id: int
        version: int = constant(3)
        live: bool = constant(True)

    assert Fixed.model_validate({"id": 1}).version == 3
    kinds = {field.name: field.kind for field in shape_of(Fixed).fields}
    assert kinds == {"id": "int", "version": "int", "live": "bool"}


class Base(Document, source="web.tags"):
    label: str

    @derived
    def shown(self) -> str:
        return self.label


class Louder(Base, source="web.tags"):
    @derived
    def shown(self) -> str:
        return super().shown + "!"

    def keep(self) -> bool:
        return super().keep()


def test_super_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(BadShape) as error:
        shape_of(Louder)
    assert [line.split(" uses ")[0].split(": ")[1] for line in str(error.value).splitlines()] == [
        "Louder.shown",
        "Louder.keep",
    ]
    assert "function of its own" in str(error.value)
