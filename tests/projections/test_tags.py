"""Tag pages: products come and go by the link table."""

from __future__ import annotations

from pipeline.testing import Scenario
from projections.tags import TagPage, tags


def two_tags() -> Scenario[TagPage]:
    shop = Scenario(tags)
    for id, name in ((1, "vegan"), (2, "gift")):
        shop.insert("shop.tags", id=id, name=name)
    for id, sku in ((7, "TEA-1"), (8, "CUP-1")):
        shop.insert("shop.products", id=id, sku=sku, title=sku.lower(), stock=1)
        shop.insert("shop.product_tags", product_id=id, tag_id=2)
    shop.insert("shop.product_tags", product_id=7, tag_id=1)
    return shop


def skus(shop: Scenario[TagPage], tag: int) -> list[str]:
    return [product.sku for product in shop.document(tag).products]


def test_a_product_is_on_the_page_of_each_of_its_tags() -> None:
    shop = two_tags()
    assert (skus(shop, 1), skus(shop, 2)) == (["TEA-1"], ["TEA-1", "CUP-1"])


def test_a_link_that_is_cut_takes_the_product_off_one_page() -> None:
    shop = two_tags()
    shop.delete("shop.product_tags", (7, 2))
    assert (skus(shop, 1), skus(shop, 2)) == (["TEA-1"], ["CUP-1"])


def test_a_renamed_product_is_renamed_on_all_its_pages() -> None:
    shop = two_tags()
    shop.update("shop.products", 7, title="Sencha")
    assert [shop.document(tag).products[0].title for tag in (1, 2)] == ["Sencha", "Sencha"]


def test_any_delivery_order_gives_the_same_pages() -> None:
    shop = two_tags()
    shop.rename_key("shop.product_tags", (8, 2), (8, 1))
    shop.delete("shop.products", 7)
    shop.assert_converges()
