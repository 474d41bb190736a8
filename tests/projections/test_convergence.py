"""Every projection of the project on generated histories: also one that has no test of its own yet."""

from __future__ import annotations

from typing import Any

from pipeline.testing import Scenario


def test_any_delivery_of_any_history_gives_the_same_documents(cdc_scenario: Scenario[Any]) -> None:
    cdc_scenario.assert_converges(20)
