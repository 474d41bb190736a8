"""`cdc rebuild`, `cutover` and `rollback`: the next build beside the one that readers see."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer

from connectors.sinks import open_sink
from connectors.sources import kinds, notices
from connectors.sources.debezium import ConnectorDefinition
from pipeline.authoring import builds
from pipeline.authoring.discovery import find
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.cli.backfill import read_again
from pipeline.cli.output import As, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.cli.progress import Bar
from pipeline.cli.status import BUILDING, line_of
from pipeline.cli.verify import verified
from pipeline.errors import OperationError
from pipeline.operations import rebuild as operation
from pipeline.operations.copying import Copying
from pipeline.operations.from_source import Reading
from pipeline.operations.rebuild import Hands, RebuildReport
from pipeline.operations.verified import Share
from pipeline.operations.verify import Options
from pipeline.ports import Sink
from pipeline.runtime import copies, wiring
from pipeline.runtime.faults import passing
from pipeline.runtime.topics import ends_of, forget_exchange, missing_log
from pipeline.settings import Settings

Name = Annotated[str, typer.Argument(metavar="NAME", help="The projection.")]
Keep = Annotated[float, typer.Option("--keep", min=0, help="Hours that the old build is kept current.")]


PATIENCE = 300.0
"""Seconds that the comparison waits for the watermark, and for transactions that are open."""


class Origin(StrEnum):
    auto = "auto"
    mirror = "mirror"
    log = "log"
    source = "source"


def rebuild(
    name: Annotated[str, typer.Argument(metavar="NAME|status|cancel", help="The projection, or what to do with it.")],
    of: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The projection.", show_default=False)] = None,
    origin: Annotated[Origin, typer.Option("--from", help="What it is filled from.")] = Origin.auto,
    rate: Annotated[float, typer.Option("--rate", min=0, help="At most so many documents a second; 0: all.")] = 0.0,
    cut: Annotated[bool, typer.Option("--cutover/--no-cutover", help="Let readers see it in the end.")] = True,
    despite: Annotated[
        bool, typer.Option("--despite-differences", help="Cut over even where documents differ from the source.")
    ] = False,
    keep: Keep = 1.0,
    output: As = None,
) -> None:
    """Build a read model anew beside the one that readers see, compare it with the source, and cut over."""
    own = load_settings()
    if of is not None and name not in ("status", "cancel"):
        raise OperationError(f"{name!r} is nothing to do with a rebuild: status or cancel.")
    code = find(own, of or name)
    if of is not None and name == "status":
        _print(operation.report(own, code), as_json(output))
        return
    if of is not None:
        dropped = operation.cancel(own, code).of(code)
        gone = asyncio.run(operation.sweep(own, code, partial(_sinks, own), partial(forget_exchange, own)))
        err().print(f"{dropped.id} {'is gone' if dropped.id in gone else 'goes as soon as its worker has ended'}.")
        return
    with builds.alone(own, code.name), _hands(own, code) as hands:
        job = asyncio.run(
            operation.begin(own, code, hands, origin=origin.value, rate=rate, cutover=cut, keep=keep * 3600)
        )
        err().print(f"{job.target.of(code).id} is built from the {job.origin}: {job.why}.")
        done = asyncio.run(operation.advance(own, code, hands, despite_differences=despite))
    _print(done, as_json(output))


def cutover(name: Name, yes: Yes = False, output: As = None) -> None:
    """Let readers see the build that is ready; the one that they saw is kept current for a rollback."""
    own = load_settings()
    code = find(own, name)
    confirm(f"Cut {name} over?", yes)
    with builds.alone(own, code.name), _hands(own, code) as hands:
        done = asyncio.run(operation.cutover(own, code, hands))
    _print(done, as_json(output))


def rollback(name: Name, yes: Yes = False, keep: Keep = 1.0, output: As = None) -> None:
    """Let readers see the build before again; a second rollback undoes the first."""
    own = load_settings()
    code = find(own, name)
    confirm(f"Roll {name} back?", yes)
    with builds.alone(own, code.name), _hands(own, code) as hands:
        done = asyncio.run(operation.rollback(own, code, hands, keep=keep * 3600))
    _print(done, as_json(output))


@contextmanager
def _hands(own: Settings, code: Projection[Any]) -> Iterator[Hands]:
    definitions = wiring.connectors_of(own, code)
    wired = wiring.wire(own, code)
    addresses = {name: definition.dsn_in(own) for name, definition in definitions.items()}
    several = f"it reads the tables of several connectors, {' and '.join(sorted(definitions))}"
    options = Options(wired.definition.name, Share(), patience=PATIENCE)
    topics = [*wired.inputs.topics, *wired.inputs.transactions]

    async def places() -> dict[str, int]:
        return {name: await asyncio.to_thread(kinds.position, dsn) for name, dsn in addresses.items()}

    with Bar(code.name) as bar:
        yield Hands(
            sinks=partial(_sinks, own),
            verify=lambda new: verified(own, new, options, bar),
            places=places,
            missing_log=partial(_missing_log, own, wired, topics),
            copying=lambda new: _copying(own, wiring.wire(own, new)),
            reading=lambda new: _reading(own, wired.definition, topics, bar),
            no_source=several if len(definitions) > 1 else "",
            say=lambda text: err().print(text),
            progress=bar.update,
            passing=passing,
        )


async def _missing_log(own: Settings, wired: wiring.Wired, topics: list[str]) -> str:
    if wired.definition.snapshot.mode == "copy":
        return f"the topics of connector {wired.definition.name} have what changed, and not the rows"
    return await missing_log(own.kafka_address(wired.definition.kafka), topics)


def _copying(own: Settings, wired: wiring.Wired) -> Copying | None:
    if copies.copyable(own, wired):
        return None
    return copies.copying(own, wired, lambda text: err().print(text, highlight=False))


def _reading(own: Settings, definition: ConnectorDefinition, topics: list[str], bar: Bar) -> Reading:
    kafka = own.kafka_address(definition.kafka)

    async def read(table: str) -> None:
        await read_again(
            own, definition, [], table, "", lambda done, total: bar.update(f"reading {table}", done, total)
        )

    return Reading(
        connector=definition.name, ends=lambda: ends_of(kafka, definition, topics), topic=definition.topic,
        table_ends=partial(notices.end_offsets, kafka), read=read,
        position=partial(asyncio.to_thread, kinds.position, definition.dsn_in(own)), say=lambda text: err().print(text),
    )  # fmt: skip


def _sinks(own: Settings, projection: Projection[Any]) -> list[Sink]:
    return [open_sink(target, projection, shape_of(projection.shape), own) for target in projection.to]


def _print(report: RebuildReport, json: bool) -> None:
    if json:
        print_json(report)
        return
    print_table(("PROJECTION", "READERS SEE", "KEPT"), [(report.projection, report.live or "-", report.kept or "-")])
    if report.building is not None:
        print_table(BUILDING, [line_of(report.building)])
