"""Transactions in Kafka, whole batches at a time: who begins with the same name ends what whoever had it before may do.

aiokafka's own producer asks again for ever where Kafka refuses, and gives up all of a transaction for one document that is too large.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from aiokafka import errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

AGAIN: Final = (errors.ConcurrentTransactions, errors.CoordinatorLoadInProgressError)
"""The transaction before is not quite over, or its coordinator not quite up."""
ELSEWHERE: Final = (errors.CoordinatorNotAvailableError, errors.NotCoordinatorError)
PRODUCER_FENCED: Final = 90
REPLACED: Final = (
    errors.InvalidProducerEpoch,
    errors.InvalidProducerIdMapping,
    errors.InvalidTxnState,
    errors.UnknownError,  # a coordinator's, where another one begins just now
)
TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
MAGIC: Final = 2
REQUEST_BYTES: Final = 8_000_000
"""A server takes 100 MB at once (socket.request.max.bytes)."""


class Replaced(Exception):
    """Somebody else has begun with the same name, or Kafka has ended what took too long: begin and read what is there."""


@dataclass(frozen=True, slots=True)
class Message:
    """A record to write; no value deletes."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes, roughly."""
        return len(self.key) + len(self.value or b"") + 100


@dataclass(slots=True)
class Part:
    """Messages that go into one partition together: all of them or none. `error` says why none."""

    partition: int
    messages: list[Message]
    size: int = 0
    offset: int = -1
    """That of the first of them."""
    error: errors.KafkaError | None = None

    @property
    def too_large(self) -> bool:
        return isinstance(self.error, TOO_LARGE)


class Producer:
    """Writes to one topic after another, each time in one transaction."""

    def __init__(self, client: Any, name: str, timeout: float) -> None:
        self._client, self._name, self._timeout = client, name, timeout
        self._coordinator: int | None = None
        self._id, self._epoch = -1, -1
        self._written: dict[tuple[str, int], int] = defaultdict(int)
        """Messages written, by partition: Kafka refuses gaps."""
        self._began = 0

    async def begin(self) -> None:
        """From here on nobody who began before writes anything, and what they have not committed is gone."""
        request = InitProducerIdRequest(self._name, int(self._timeout * 2000))
        answer = await self._ask(request, lambda answer: [answer.error_code])
        self._id, self._epoch = answer.producer_id, answer.producer_epoch

    async def write(self, topic: str, leaders: Mapping[int, int], parts: Sequence[Part]) -> bool:
        """Write the parts, but for those that are too large; where another is refused, nothing. Whether it is written.

        Raises Replaced, and KafkaError where nobody knows.
        """
        self._began = int(time.time() * 1000)
        partitions = sorted({part.partition for part in parts})
        request = AddPartitionsToTxnRequest(self._name, self._id, self._epoch, [(topic, partitions)])
        await self._ask(request, lambda answer: [code for _, found in answer.errors for _, code in found])
        for together in _rounds(parts):
            await self._produce(topic, leaders, together)
            if any(part.error and not part.too_large for part in together):
                break
        well = not any(part.error and not part.too_large for part in parts)
        await self._end(well)
        if well:
            with suppress(Replaced):  # whoever that is waits for it too
                await self._end(well)
        return well

    async def _end(self, commit: bool) -> None:
        """Decided with the first answer; a second one comes when readers have it."""
        request = EndTxnRequest(self._name, self._id, self._epoch, commit)
        await self._ask(request, lambda answer: [answer.error_code])

    async def _produce(self, topic: str, leaders: Mapping[int, int], parts: Iterable[Part]) -> None:
        """One part of each partition at most."""
        by_node: dict[int, list[Part]] = defaultdict(list)
        for part in parts:
            by_node[leaders[part.partition]].append(part)
        requests = ((node, sent) for node, all_of_it in by_node.items() for sent in _bounded(all_of_it))
        await asyncio.gather(*(self._send(node, topic, sent) for node, sent in requests))

    async def _send(self, node: int, topic: str, parts: Sequence[Part]) -> None:
        sent = [(part.partition, self._built(topic, part)) for part in parts]
        request = ProduceRequest(self._name, -1, int(self._timeout * 1000), [(topic, sent)])
        answer = await self._client.send(node, request)
        of = {part.partition: part for part in parts}
        for _, partitions in answer.topics:
            for partition, code, offset, *_ in partitions:
                part = of[partition]
                if code == PRODUCER_FENCED or errors.for_code(code) in REPLACED:
                    raise Replaced
                if code:
                    part.error = errors.for_code(code)()
                else:
                    part.offset = offset
                    self._written[topic, partition] += len(part.messages)

    def _built(self, topic: str, part: Part) -> bytes:
        builder = DefaultRecordBatchBuilder(
            MAGIC, 0, is_transactional=1, producer_id=self._id, producer_epoch=self._epoch,
            base_sequence=self._written[topic, part.partition] & 0x7FFFFFFF, batch_size=(1 << 31) - 1,
        )  # fmt: skip
        for place, message in enumerate(part.messages):
            builder.append(place, self._began, message.key, message.value, message.headers)
        return bytes(builder.build())

    async def _ask(self, request: Any, codes: Callable[[Any], list[int]]) -> Any:
        """The coordinator's answer, once it has one that is not `ask again`."""
        ends = time.monotonic() + self._timeout
        while True:
            try:
                if self._coordinator is None:
                    self._coordinator = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, self._name)
                answer = await self._client.send(self._coordinator, request, group=ConnectionGroup.COORDINATION)
                found = codes(answer)
                if PRODUCER_FENCED in found:
                    raise Replaced
                wrong = [errors.for_code(code) for code in found if code]
                if any(error in REPLACED for error in wrong):
                    raise Replaced
                if not wrong:
                    return answer
                # where several are wrong, the others were not tried
                raise next((error for error in wrong if error is not errors.OperationNotAttempted), wrong[0])()
            except ELSEWHERE:
                self._coordinator = None
                pause = 0.1
            except AGAIN:
                pause = 0.002
            if time.monotonic() > ends:
                raise TimeoutError
            await asyncio.sleep(pause)


def parts(messages: Mapping[int, Sequence[Message]], size: int) -> list[Part]:
    """The messages of each partition in parts of so many bytes at most; a larger message goes alone."""
    found: list[Part] = []
    for partition, these in messages.items():
        part = Part(partition, [])
        for message in these:
            if part.messages and part.size + message.size > size:
                found.append(part)
                part = Part(partition, [])
            part.messages.append(message)
            part.size += message.size
        found.append(part)
    return found


def _rounds(parts: Sequence[Part]) -> Iterable[list[Part]]:
    """Kafka takes one part of a partition at a time."""
    by_partition: dict[int, list[Part]] = defaultdict(list)
    for part in parts:
        by_partition[part.partition].append(part)
    for together in zip_longest(*by_partition.values()):
        yield [part for part in together if part is not None]


def _bounded(parts: Sequence[Part]) -> Iterable[list[Part]]:
    """In requests of bounded bytes; a larger part goes alone."""
    request: list[Part] = []
    for part in parts:
        if request and sum(one.size for one in request) + part.size > REQUEST_BYTES:
            yield request
            request = []
        request.append(part)
    yield request
