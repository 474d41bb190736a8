"""The dashboard's pages and their twins, of report models made by hand; no service is asked."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from pipeline.authoring import builds
from pipeline.authoring.builds import Build, Job
from pipeline.engine.story import RowStory
from pipeline.errors import SinkUnavailable
from pipeline.operations.apply import ApplyReport, Step
from pipeline.operations.doctor import Finding
from pipeline.operations.expected import FieldDifference
from pipeline.operations.explain import DocumentStory, SinkStory
from pipeline.operations.refused import DeadLetter, Quarantined
from pipeline.operations.status import Building, StatusReport
from pipeline.operations.verified import SinkVerified, VerifyReport
from pipeline.operations.web_keys import Key
from pipeline.reports.connectors import ConnectorLine
from pipeline.reports.doctor import Findings
from pipeline.web.access import Caller
from pipeline.web.dashboard import render
from pipeline.web.dashboard.answers import Answers
from pipeline.web.dashboard.pages import (
    DoctorPage,
    DocumentPage,
    Overview,
    PlanPage,
    ProjectionPage,
    RefusedPage,
    SourcesPage,
    command,
)  # fmt: skip
from pipeline.web.dashboard.sessions import Visitor
from tests.unit.dashboards import get, looked, made_app, status_of

AT = datetime(2026, 11, 26, 7, 30, tzinfo=UTC)
ODD = "<img src=x onerror=alert(1)> & 'quotes' \"too\""
"""A text that is a script where it is not escaped."""


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return made_app(tmp_path)


def words(page: str) -> str:
    """A page without its marks."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


async def test_the_overview_has_a_line_a_projection_and_what_needs_somebody(app: FastAPI) -> None:
    looked(
        app, status_of(), status_of("sales", state="gone", attention=["sales is gone; start it with cdc run"])
    )  # fmt: skip

    page = (await get(app, "/")).text

    assert "1 of 2 read models needs attention" in words(page)
    assert "<code>cdc run</code>" in page
    assert "20,000" in page
    assert '<a href="/projections/orders">orders</a>' in page
    assert "▲</span> gone" in page  # a sign and a word, not a colour alone


async def test_all_well_is_said(app: FastAPI) -> None:
    looked(app, status_of(), status_of("sales"))

    assert "All 2 read models are current" in words((await get(app, "/")).text)


async def test_the_twin_is_the_report_of_the_command_line(app: FastAPI) -> None:
    looked(app, status_of(), status_of("sales", dead_letters=2))

    twin = Overview.model_validate_json((await get(app, "/status.json")).content)

    assert twin.status == app.state.sampler.status.value
    assert twin.command == "cdc status"
    assert twin.behind["orders"] == [0.4, 0.4]


async def test_a_projections_page_shows_its_way_its_rates_and_its_build(app: FastAPI) -> None:
    far = Building(
        projection="orders", id="orders-v2", origin="mirror", why="", phase="load", step="writing", unit="documents",
        done=62, total=100, seconds=5,
    )  # fmt: skip
    sampler = looked(app, status_of(), building=(far,))
    sampler.connectors.value = [ConnectorLine(name="shop", state="running", kept_bytes=1_250_000)]

    page = (await get(app, "/projections/orders")).text
    twin = ProjectionPage.model_validate_json((await get(app, "/projections/orders.json")).content)

    assert "shop.shop.order_lines" in page  # its topics
    assert "25.0 changes/s" in words(page)
    assert "1.2 MB" in page  # the log that the slot holds
    assert "1/FF" in page  # the watermark, as Postgres writes it
    assert twin.rates["changes"] == 25.0
    assert twin.key == ["id"]
    assert '<progress max="100" value="62"' in (await get(app, "/")).text


async def test_a_projections_page_shows_its_canary_and_until_when_its_state_is_saved(app: FastAPI) -> None:
    looked(app, status_of(saved_at=1_790_000_000.0))
    settings = app.state.settings
    settings.web.canary = 0.05
    job = Job(target=Build(version=1, build=2), origin="mirror", why="so", started=0, phase="ready")
    builds.update(settings, "orders", lambda now: now.having(job=job))
    versions = app.state.versions["orders"]
    versions.reads.update({("orders-v1.2", "same"): 41, ("orders-v1.2", "different"): 1})
    versions.stopped["orders-v1.2"] = "it differs: 7"

    page = words((await get(app, "/projections/orders")).text)
    assert (
        "orders-v1.2 is tried by 5 % of the keys that are read." in page
        and "41 same, 1 different, 0 unavailable" in page
    )
    assert "It is read no more: it differs: 7" in page and "Its state is saved as of 2026-09-21 14:13:20 UTC" in page

    settings.web.canary, versions.stopped = 1.0, {}
    assert versions._tried(["7"]) == "orders-v1.2"
    builds.file(settings, "orders").write_text("{")
    versions._builds = None
    assert versions._tried(["7"]) is None  # a file that is damaged is no reason to answer no read


async def test_a_slot_that_is_lost_is_named_on_the_first_page_and_beside_its_connector(app: FastAPI) -> None:
    lost = "slot cdc of connector shop: is lost: cdc connector apply shop --anew: a new snapshot is read"
    looked(app, status_of()).connectors.value = [ConnectorLine(name="shop", state="failed", attention=lost)]

    for path in ("/", "/sources"):
        assert words(lost) in words((await get(app, path)).text)
    assert "The source needs attention" in (await get(app, "/")).text
    assert Overview.model_validate_json((await get(app, "/status.json")).content).status.attention == [lost]


async def test_an_unknown_projection_is_not_found(app: FastAPI) -> None:
    assert (await get(app, "/projections/nix")).status_code == 404
    assert (await get(app, "/projections/nix/document?key=1")).status_code == 404


async def test_a_document_without_a_mirror_is_a_problem_on_the_page(app: FastAPI) -> None:
    answer = await get(app, "/projections/orders/document?key=10")

    assert answer.status_code == 200
    assert "orders has no mirror yet: start it with cdc run" in words(answer.text)
    assert "cdc explain orders 10" in answer.text


async def test_a_key_that_is_a_script_is_shown_as_a_text(app: FastAPI) -> None:
    answer = await get(app, f"/projections/orders/document?key={quote(ODD)}")

    assert "<img src=x" not in answer.text
    assert "&lt;img src=x onerror=alert(1)&gt;" in answer.text


def rendered(template: str, page: Any) -> str:
    key = Key(name=ODD, sha256="", scopes=("dashboard", "operate"), created_at=AT)
    visitor = Visitor(Caller(key), csrf=ODD)
    response = render.page(template, page, visitor, twin="/x.json", project=ODD, path="/")
    return bytes(response.body).decode()


def odd_pages() -> list[tuple[str, Any]]:
    """Every page, with an odd text wherever a text may come from outside."""
    status = status_of(
        ODD, state=ODD, attention=[ODD], error=ODD,
        sinks=[status_of().sinks[0].model_copy(update={"name": ODD, "error": ODD})],
    )  # fmt: skip
    line = ConnectorLine(
        name=ODD, state=ODD, tables=(ODD,), tasks=(ODD,), slot=ODD, reason=ODD, problem=ODD, attention=ODD
    )
    verified = VerifyReport(projection=ODD, version=1, at=AT, share=1, sinks=(SinkVerified(
        sink=ODD, position=0, checked=1, missing=1, extra=0, different=0, undecided=0, unbuildable=0, repaired=0,
        compared_again=0, differences=(), seconds=1,
    ),))  # fmt: skip
    row = RowStory(path=ODD, table=ODD, columns={ODD: ODD}, source_log=ODD, commit=1, order=1)
    story = DocumentStory(
        projection=ODD, id=ODD, rows=[row], document={ODD: ODD}, contributions=2,
        sinks=[
            SinkStory(sink=ODD, equal=False, document={ODD: ODD}, quarantined=ODD, epoch=1, sequence=2,
                      differences=[FieldDifference(path=ODD, source=ODD, document=[ODD])]),
            SinkStory(sink=ODD, equal=False, document={ODD: ODD}),
            SinkStory(sink=ODD, error=ODD),
        ],
    )  # fmt: skip
    letter = DeadLetter(
        projection=ODD, id=1, topic=ODD, partition=0, offset=1, error=ODD, transaction=ODD, at=AT, key=ODD, value=ODD
    )
    held = Quarantined(projection=ODD, sink=ODD, key=[ODD, 1], kind=ODD, error=ODD, attempts=1, at=AT)
    step = Step(
        projection=ODD, version=2, target=ODD, action="beside", reason=ODD, changes=(ODD,), documents=1, seconds=1
    )
    common: dict[str, Any] = {"command": command("x", ODD), "problem": ODD}
    return [
        ("overview.html", Overview(**common, status=StatusReport(projections=[status]), behind={ODD: [1, None, 2]})),
        ("projection.html", ProjectionPage(
            **common, name=ODD, status=status, topics=[ODD], key=[ODD], connectors=[line], verified=verified,
        )),
        ("document.html", DocumentPage(**common, name=ODD, names=[ODD], key=[ODD], story=story)),
        ("refused.html", RefusedPage(**common, dead_letters=[letter], quarantined=[held])),
        ("sources.html", SourcesPage(**common, connectors=[line], positions={ODD: 1})),
        ("plan.html", PlanPage(**common, plan=ApplyReport(steps=(step,), notes=(ODD,)))),
        ("doctor.html", DoctorPage(**common, findings=Findings([Finding(subject=ODD, level="error", found=ODD, fix=ODD)]))),
    ]  # fmt: skip


@pytest.mark.parametrize(("template", "page"), odd_pages(), ids=lambda given: given if isinstance(given, str) else "")
def test_no_text_from_outside_becomes_markup(template: str, page: Any) -> None:
    text = rendered(template, page)

    assert "<img src=x" not in text
    assert "&lt;img" in text
    bare = re.sub(r'"[^"]*"', '""', text)
    assert re.findall(r"<script[^>]*>[^<]*", bare) == ['<script src="" defer>']
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", bare)  # the policy would refuse them


@pytest.mark.parametrize("path", ["/", "/projections/orders", "/refused", "/sources", "/static/dashboard.js"])
async def test_pages_let_no_script_of_others_in(app: FastAPI, path: str) -> None:
    headers = (await get(app, path)).headers

    assert headers["x-content-type-options"] == "nosniff"
    if not path.startswith("/static"):
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'")


async def test_every_page_names_its_command_and_its_twin_that_answers(app: FastAPI) -> None:
    looked(app, status_of())
    for path, twin in (
        ("/", "/status.json"),
        ("/projections/orders", "/projections/orders.json"),
        ("/projections/orders/document?key=1", "/projections/orders/document.json?key=1"),
        ("/refused", "/refused.json"),
        ("/sources", "/sources.json"),
    ):
        page = (await get(app, path)).text
        found = (await get(app, twin)).json()

        assert f'href="{twin}"' in page
        assert found["command"].startswith("cdc ")
        assert found["command"] in page


async def test_who_does_not_answer_is_a_problem_in_time_and_is_asked_once() -> None:
    asked, answer = [], threading.Event()

    def hangs() -> str:
        asked.append(1)
        answer.wait(30)
        return "late"

    answers = Answers(limit=0.05)
    first, second = await asyncio.gather(answers.ask("it", "cdc doctor", hangs), answers.ask("it", "cdc doctor", hangs))
    answer.set()

    assert first.value is None
    assert (
        second.problem
        == first.problem
        == ("No answer within 0.05 s: a service that is asked does not answer. Try `cdc doctor`.")
    )
    assert asked == [1]
    answers.close()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SinkUnavailable("elasticsearch:orders is away"), "SinkUnavailable: elasticsearch:orders is away"),
        (ValueError("postgresql://u:hunter2@host/db"), "ValueError: `cdc plan` says more."),
    ],
)
async def test_a_report_that_fails_is_a_problem_without_secrets(error: Exception, says: str) -> None:
    def fails() -> None:
        raise error

    answers = Answers()
    assert (await answers.ask("it", "cdc plan", fails)).problem == says
    answers.close()


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        (render.seconds, None, "-"), (render.seconds, 0.44, "0.4 s"), (render.seconds, 212, "4 min"),
        (render.seconds, 86_400 * 5, "5 days"), (render.size, 999, "999 B"), (render.size, 1_250_000, "1.2 MB"),
        (render.lsn, 0x1_0000_00FF, "1/FF"), (render.number, 1204551, "1,204,551"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(shown: Callable[[Any], str], value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_curve_says_in_words_what_it_shows() -> None:
    curve = render.spark([0.5, None, 3.0, 1.0])

    assert "worst of the last 3 looks 3.0 s, now 1.0 s" in curve
    assert curve.count("polyline") == 1
    assert "polyline" not in render.spark([None, 1.0])
