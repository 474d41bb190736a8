"""`cdc verify` and `cdc wait`: is the read model what the source says, and how far is it?"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from connectors.sinks import open_sink
from connectors.sources import kinds, logs
from connectors.sources.across_documents import Captured
from connectors.sources.catalogs import captured_catalog
from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.kinds import RowsBySource, open_rows
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.discovery import find
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import As, as_json, err, load_settings, print_json, print_table
from pipeline.cli.progress import Bar
from pipeline.errors import CdcError, OperationError
from pipeline.events.sourcelog import position_of
from pipeline.operations import repair as repairing
from pipeline.operations import verify as operation
from pipeline.operations.expected import Expectation
from pipeline.operations.expected_groups import GroupExpectation, GroupSource
from pipeline.operations.mirrors import gone_rows
from pipeline.operations.passing import written
from pipeline.operations.status import write_verified
from pipeline.operations.verified import Share, SinkVerified, VerifyReport, report
from pipeline.operations.verify import Options
from pipeline.operations.wait import Token, Waited, of_connector
from pipeline.operations.wait import wait as waiting
from pipeline.ports import Sink
from pipeline.runtime.wiring import connectors_of, definitions_of
from pipeline.settings import Settings

Name = Annotated[str, typer.Argument(metavar="NAME", help="The projection.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the watermark.")]
DIFFERENT = 3


def verify(
    name: Name,
    sample: Annotated[str, typer.Option("--sample", help="The part of all documents to compare.")] = "1%",
    everything: Annotated[bool, typer.Option("--all", help="Compare all documents.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Write what differs again, and compare it again.")] = False,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Go on, a sample at a time, and tell `cdc status`.")
    ] = False,
    every: Annotated[float, typer.Option("--every", min=0, help="Seconds between two samples.")] = 60.0,
    rate: Annotated[float, typer.Option("--rate", min=0, help="At most so many documents a second; 0: all.")] = 0.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds to wait for the watermark, and for open transactions.")
    ] = 60.0,
    show: Annotated[int, typer.Option("--show", min=0, help="How many differences are shown.")] = 20,
    output: As = None,
) -> None:
    """Compare documents with what the source says, at a known position; exit 3 where they differ."""
    own = load_settings()
    projection = find(own, name)
    parts = 1 if everything else _parts(sample)
    number = random.randrange(parts)  # noqa: S311 - any part will do
    while True:
        options = _options(own, projection, Share(number, parts), rate, timeout, show)
        try:
            with Bar(projection.name) as bar:
                found = asyncio.run(verified(own, projection, options, bar, repair=repair))
        except CdcError as error:
            if not continuous:
                raise
            err().print(f"{type(error).__name__}: {error}", style="yellow")
        else:
            _print(found, as_json(output))
            if not continuous and not found.equal:
                raise typer.Exit(DIFFERENT)
        if not continuous:
            return
        number = (number + 1) % parts
        time.sleep(every)


def wait(
    name: Name,
    position: Annotated[
        str | None, typer.Option("--lsn", help="A place in the source's log, 0/16B3748; a GTID, 0-1-42.")
    ] = None,
    txid: Annotated[int | None, typer.Option("--txid", help="A transaction, as pg_current_xact_id() told it.")] = None,
    now: Annotated[bool, typer.Option("--now", help="All that has committed by now.")] = False,
    connector: Annotated[
        str, typer.Option("--connector", help="Whose source it is of, where a read model is of several.")
    ] = "",
    searchable: Annotated[
        bool, typer.Option("--searchable", help="Until searches find it, not only reads by id.")
    ] = False,
    timeout: Timeout = 10.0,
    output: As = None,
) -> None:
    """Wait until a read model is complete up to a place in the source's log; exit 4 where it is not in time."""
    own = load_settings()
    projection = find(own, name)
    if sum((position is not None, txid is not None, now)) != 1:
        raise OperationError("Say what to wait for: one of --lsn, --txid and --now.")
    definitions = connectors_of(own, projection)
    names = list(definitions)
    if not now or connector:
        names = [of_connector(Token(connector=connector), names, name).connector]
    chosen = [definitions[of] for of in names]
    wanted = {
        of.name: _position(position) if position is not None else kinds.position(of.dsn_in(own), txid) for of in chosen
    }
    found = asyncio.run(_wait(own, projection, chosen, wanted, timeout, searchable))
    if as_json(output):
        print_json(found)
    else:
        rows = [
            (w.sink, w.connector, "yes" if w.reached else "no", str(w.watermark), f"{w.seconds:.2f} s") for w in found
        ]
        print_table(("SINK", "CONNECTOR", "REACHED", "WATERMARK", "AFTER"), rows)
    if not all(one.reached for one in found):
        raise typer.Exit(4)


async def _wait(
    own: Settings, projection: Projection[Any], definitions: Sequence[ConnectorDefinition], wanted: Mapping[str, int],
    patience: float, searchable: bool,
) -> list[Waited]:  # fmt: skip
    known = await _source_logs(own, definitions)
    sinks = _sinks(own, projection)
    try:
        return list(
            await asyncio.gather(
                *(
                    waiting(sink, of, place, patience=patience, log=known[of], searchable=searchable)
                    for sink in sinks
                    for of, place in wanted.items()
                )
            )
        )
    finally:
        for sink in sinks:
            await sink.close()


async def _source_logs(own: Settings, definitions: Iterable[ConnectorDefinition]) -> dict[str, str | None]:
    """The label of the log that each connector reads; None, and a word of it, where Connect does not say."""
    found: dict[str, str | None] = {}
    for of in definitions:
        try:
            found[of.name] = await logs.running(own.connect_address(of.kafka), of.name)
        except CdcError as error:
            err().print(f"{error} A source that was restored meanwhile is not noticed.", style="yellow")
            found[of.name] = None
    return found


def _position(text: str) -> int:
    if re.fullmatch(r"[0-9]+|[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}|[0-9]+-[0-9]+-[0-9]+", text):
        return position_of(text)
    raise OperationError(
        f"{text!r} is no place in a log: write 0/16B3748, 0-1-42 (MariaDB), or the number that events have."
    )


def _parts(sample: str) -> int:
    found = re.fullmatch(r"([0-9.]+) ?%", sample)
    percent = float(found[1]) if found and found[1].count(".") < 2 and found[1] != "." else 0.0
    if not 0 < percent <= 100:
        raise OperationError(f"{sample!r} is no part of the documents: write --sample 1%, or --all.")
    return max(1, round(100 / percent))


def _options(
    own: Settings, projection: Projection[Any], share: Share, rate: float, timeout: float, show: int
) -> Options:
    return Options(next(iter(connectors_of(own, projection))), share, rate, timeout, show)


async def verified(
    own: Settings, projection: Projection[Any], options: Options, bar: Bar, *, repair: bool = False
) -> VerifyReport:
    """Compare all sinks of a projection with the source, and tell `cdc status`."""
    shape = shape_of(projection.shape)
    definitions = connectors_of(own, projection)
    options = replace(options, logs=await _source_logs(own, definitions.values()))
    captured = await asyncio.to_thread(_captured, own, projection)
    catalog = Catalog.of(table for of in captured.values() for table in of.catalog.tables.values())
    unreadable = frozenset(
        f"{table.name}.{column.name}"
        for of in captured.values()
        for table in of.catalog.tables.values()
        for column in table.columns
        if not kinds.readable(of.dsn, column)
    )
    salt = own.salt(projection.name) if "hash" in shape.masks else None
    rows = kinds.documents(captured, shape.source, patience=options.patience)
    found: list[SinkVerified] = []
    with ExitStack() as stack:
        expectation: Expectation | GroupExpectation
        source: operation.Source
        repairs: tuple[operation.Repair, ...]
        if isinstance(shape, AggregateShape):
            gone = stack.enter_context(gone_rows(own, projection))
            expectation = GroupExpectation(shape, catalog, unreadable, gone, salt)
            reading = partial(bar.update, "reading the source", total=0)
            source = groups = GroupSource(rows, expectation, options.share.has, options.rate, reading)
            repairs = _group_repairs(own, projection, captured, groups)
        else:
            expectation, source = Expectation(shape, catalog, unreadable, salt), rows
            repairs = _repairs(own, projection, catalog, captured)
        if any(of.kind != "postgres" for of in definitions.values()):
            repairs = (_until_written(own, projection, repairs[0], options.patience),)  # rows are not read again there
        for target, sink in zip(projection.to, _sinks(own, projection), strict=True):
            rules = own.rows_withheld(target.kind, target.name)
            wanted = expectation.for_sink(rules) if isinstance(expectation, Expectation) else expectation
            try:
                with_repair = repairs if repair else ()
                found.append(
                    await operation.verify(source, wanted, sink, options, repairs=with_repair, progress=bar.update)
                )
            finally:
                await sink.close()
    result = report(projection, options.share, found, expectation.not_compared)
    write_verified(own, projection.id, result)
    return result


def _captured(own: Settings, projection: Projection[Any]) -> dict[str, Captured]:
    """The catalogue and the address of each of its connectors, by name; that of its documents' own table first."""
    by_table, found = definitions_of(own, projection), {}
    for name, definition in connectors_of(own, projection).items():
        tables = sorted(table for table, of in by_table.items() if of.name == name)
        found[name] = Captured(definition.dsn_in(own), captured_catalog(own, definition, tables))
    return found


def _repairs(
    own: Settings, projection: Projection[Any], catalog: Catalog, captured: Mapping[str, Captured]
) -> tuple[operation.Repair, operation.Repair]:
    """First the documents are written again; where they are wrong still, the rows behind them are read again."""

    async def mark(sink: Sink, found: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        keys = repairing.mirror_keys(projection, catalog, found)
        await asyncio.to_thread(repairing.mark_dirty, own, projection, sink.name, keys)

    async def refresh(sink: Sink, found: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        keys = repairing.mirror_keys(projection, catalog, found)
        await asyncio.to_thread(_refresh, own, projection, captured, keys)
        await mark(sink, found)

    return mark, refresh


def _group_repairs(
    own: Settings, projection: Projection[Any], captured: Mapping[str, Captured], source: GroupSource
) -> tuple[operation.Repair, operation.Repair]:
    """First the groups are written again as the mirror counts them; then what they count is read again."""

    def keys(found: Sequence[tuple[str, tuple[str, ...] | None]]) -> list[str]:
        told = [key[0] if key is not None and key[0] != id else source.expectation.key_of(id) for id, key in found]
        return [key for key in dict.fromkeys(told) if key is not None]

    async def mark(sink: Sink, found: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        groups = [(key,) for key in keys(found)]
        await asyncio.to_thread(repairing.mark_dirty, own, projection, sink.name, groups)

    async def refresh(sink: Sink, found: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        groups = keys(found)
        roots = await asyncio.to_thread(members, groups)
        await asyncio.to_thread(_refresh, own, projection, captured, roots)
        await mark(sink, found)

    def members(groups: Sequence[str]) -> list[tuple[Any, ...]]:
        with source.snapshot() as snapshot:
            there = snapshot.members(groups)
        return sorted(there | repairing.counted(own, projection, groups), key=str)

    return mark, refresh


def _until_written(
    own: Settings, projection: Projection[Any], repair: operation.Repair, patience: float
) -> operation.Repair:
    """A repair that is over when its documents are written: an idle MariaDB has no later position that says so."""

    async def both(sink: Sink, found: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        await repair(sink, found)
        if why := await written(own, projection, patience):
            raise OperationError(f"{projection.id} does not write what was marked: {why}.")

    return both


def _refresh(
    own: Settings, projection: Projection[Any], captured: Mapping[str, Captured], keys: Sequence[tuple[Any, ...]]
) -> None:
    with ExitStack() as opened:
        rows = RowsBySource()
        for of in captured.values():
            rows.add(of.catalog, opened.enter_context(open_rows(of.dsn)))
        report = repairing.refresh_behind(own, projection, rows.catalog, rows, keys)
    for left in report.left:
        err().print(f"{left.table} {left.key} was not read again: {left.reason}", style="yellow")


def _sinks(own: Settings, projection: Projection[Any]) -> list[Sink]:
    return [open_sink(target, projection, shape_of(projection.shape), own) for target in projection.to]


def _print(report: VerifyReport, json: bool) -> None:
    if json:
        print_json(report)
        return
    columns = ("SINK", "CHECKED", "MISSING", "EXTRA", "DIFFERENT", "REPAIRED", "UNDECIDED", "UNBUILDABLE")
    print_table(columns, [_line(sink) for sink in report.sinks])
    for sink in report.sinks:
        if sink.ended:
            err().print(f"{sink.sink}: {sink.ended:,} have ended (ttl) and were not compared")
        for one in sink.differences:
            err().print(f"{one.kind} {one.id}", style="yellow")
            for at in one.fields:
                err().print(f"  {at.path}: the source has {at.source!r}, the document {at.document!r}")
        if sink.wrong > len(sink.differences):
            err().print(f"… and {sink.wrong - len(sink.differences)} more (--show)")
    if report.not_compared:
        err().print(f"Not compared: {', '.join(report.not_compared)}.")


def _line(s: SinkVerified) -> tuple[str, ...]:
    counts = (s.checked, s.missing, s.extra, s.different, s.repaired, s.undecided, s.unbuildable)
    return (s.sink, *(f"{n:,}" for n in counts))
