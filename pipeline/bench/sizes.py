"""How much data each size has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of one shop; every order has three lines."""

    orders: int

    @property
    def customers(self) -> int:
        return max(10, self.orders // 5)

    @property
    def products(self) -> int:
        return max(10, self.orders // 50)

    @property
    def lines(self) -> int:
        return 3 * self.orders

    @property
    def rows(self) -> int:
        return self.orders + self.customers + self.products + self.lines

    def times(self, factor: float) -> Data:
        return Data(max(100, round(self.orders * factor)))


@dataclass(frozen=True, slots=True)
class Size:
    """One `--size`."""

    name: str
    data: Data
    rates: tuple[int, ...]
    """Transactions a second of the live part, one after another."""
    seconds: float
    """How long each rate goes on."""
    followers: int
    """Orders of the customer who is renamed."""
    growth: tuple[float, ...]
    """The data of the growth part, as shares of `data`."""
    backlog: int
    """Transactions that the parts with several workers work off."""
    warm: bool
    """Whether the services' JVMs are warmed up before anything is measured."""

    @property
    def changes(self) -> int:
        """Transactions that the growth part works off: each changes another order, also where there are fewest."""
        return min(self.backlog, self.data.times(min(self.growth)).orders)

    @property
    def most(self) -> Data:
        """The largest data of the growth part; a rebuild is measured at it, too."""
        return self.data.times(max(self.growth))


FULL: Final = Size("full", Data(100_000), (10, 50, 200, 500), 30, 20_000, (0.1, 1), 20_000, warm=True)
SIZES: Final = {
    "small": Size("small", Data(1_500), (10, 50), 3, 300, (0.1, 1), 300, warm=False),
    "full": FULL,
    "ten": Size("ten", FULL.data, FULL.rates, FULL.seconds, FULL.followers, (0.1, 1, 10), FULL.backlog, warm=True),
}
