"""Tag pages: one document per tag with its products, many to many through a link table."""

from typing import Annotated

from pipeline import Document, Text, elasticsearch, many, projection


class TaggedProduct(Document, source="shop.products"):
    id: int
    sku: str
    title: Annotated[str, Text()]


class TagPage(Document, source="shop.tags"):
    id: int
    name: str
    products: tuple[TaggedProduct, ...] = many(through="shop.product_tags", by="tag_id", via="product_id")


tags = projection(TagPage, to=elasticsearch("tags"))
