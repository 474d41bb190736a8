"""The pytest plugin `cdc`: a test that asks for `cdc_scenario` is run on generated histories of every projection there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pipeline.testing.scenario import Scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("cdc").addoption(
        "--cdc-histories",
        type=int,
        default=5,
        metavar="N",
        help="how many generated histories of each projection `cdc_scenario` gives (5)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cdc_scenario" not in metafunc.fixturenames:
        return
    # only here: a project that does not ask for it does not load the engine
    from pipeline.authoring.discovery import discover
    from pipeline.errors import CdcError
    from pipeline.settings import load

    try:
        projections = discover(load().projections)
    except CdcError as error:
        pytest.fail(str(error), pytrace=False)
    seeds = range(metafunc.config.getoption("--cdc-histories"))
    wanted = [(projection, seed) for projection in projections for seed in seeds]
    ids = [f"{projection.name}-{seed}" for projection, seed in wanted]
    metafunc.parametrize("cdc_scenario", wanted, ids=ids, indirect=True)


@pytest.fixture
def cdc_scenario(request: pytest.FixtureRequest) -> Scenario[Any]:
    """One projection of the working directory's project, told a generated history."""
    from pipeline.testing.histories import generated

    projection, seed = request.param
    return generated(projection, seed)
