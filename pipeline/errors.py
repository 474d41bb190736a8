"""Every error this project raises on purpose.

CdcError
├── SettingsError                                                          a setting is missing or wrong
├── DefinitionError                                                        the author's: `cdc check` finds them all at once
│   ├── UnknownTable  UnknownColumn  WrongType  NoPrimaryKey  NoReplicaIdentity  DuplicateProjection  BadShape
├── DecodeError                                                            one change -> dead letter
│   ├── MalformedEnvelope  UnsupportedValue
├── SourceError
│   ├── SourceUnavailable*  ConnectorFailed  PositionWentBack  SlotLost  SchemaChanged
├── SinkError
│   ├── SinkUnavailable*  TargetMissing  QueryRefused
├── CheckpointError
│   ├── Fenced  LogTruncated  StatesUnavailable*
├── ReadFailed                                                             the query API refuses, or can't be reached
│   └── NotThereYet*
├── StackError                                                             the local stack
├── ScenarioError                                                          a test's story asks for what a source can't do
└── OperationError                                                         an operator's command can't be done
    └── PlanOutdated  VerificationFailed                                   * = Transient: try again later
The docstring of a class is its default message; a message says what happened, to what, and what to do.
"""

from __future__ import annotations


class Transient(Exception):
    """Trying again later may help."""


class CdcError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class SettingsError(CdcError):
    """A setting is missing or wrong: see `cdc config show`."""


class DefinitionError(CdcError):
    """A projection's definition is wrong."""


class UnknownTable(DefinitionError):
    """The source has no such table."""


class UnknownColumn(DefinitionError):
    """The source table has no such column."""


class WrongType(DefinitionError):
    """The field's type can't hold the column's values."""


class NoPrimaryKey(DefinitionError):
    """The source table has no primary key, so its updates and deletes can't be followed."""


class NoReplicaIdentity(DefinitionError):
    """The source table has REPLICA IDENTITY NOTHING, so its updates and deletes are not sent."""


class DuplicateProjection(DefinitionError):
    """Two projections have the same name."""


class BadShape(DefinitionError):
    """The document's declaration contradicts itself."""


class DecodeError(CdcError):
    """An event can't be decoded."""


class MalformedEnvelope(DecodeError):
    """The message is no Debezium envelope."""


class UnsupportedValue(DecodeError):
    """A column's value is not of the kind its projection declares."""


class SourceError(CdcError):
    """The source database or its connector."""


class SourceUnavailable(SourceError, Transient):
    """The source database or its connector can't be reached."""


class SchemaChanged(SourceError):
    """The source's events lack a column that a projection uses."""


class ConnectorFailed(SourceError):
    """A connector or its task has failed."""


class PositionWentBack(SourceError):
    """The source's log is another one than the connector read, or ends before it."""


class SlotLost(SourceError):
    """The source no longer has the connector's slot, so changes are missing."""


class SinkError(CdcError):
    """A sink."""


class SinkUnavailable(SinkError, Transient):
    """The sink can't be reached."""


class NotAllowed(SinkUnavailable):
    """Nothing was sent: this worker may have been replaced."""


class TargetMissing(SinkError):
    """The sink's target does not exist: run `cdc apply`."""


class QueryRefused(SinkError):
    """The sink can't be asked so: the cursor is of another query, or the query asks for too much."""


class CheckpointError(CdcError):
    """What has been made durable is not what this process thinks."""


class Fenced(CheckpointError):
    """Another worker owns this mirror now: this one stops."""


class LogTruncated(CheckpointError):
    """Kafka no longer has the offsets that come next: a rebuild is needed."""


class StatesUnavailable(CheckpointError, Transient):
    """The state snapshots can't be reached."""


class ReadFailed(CdcError):
    """The query API did not give what was asked for; `status` is that of HTTP, 0 where there was no answer."""

    def __init__(self, message: str | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotThereYet(ReadFailed, Transient):
    """The read model did not come as far as the token in time; `watermark` is how far it came."""

    def __init__(self, message: str | None = None, watermark: str = "") -> None:
        super().__init__(message, 504)
        self.watermark = watermark


class StackError(CdcError):
    """The local stack."""


class ScenarioError(CdcError):
    """The source of a scenario can't do this."""


class OperationError(CdcError):
    """The command can't be done."""


class PlanOutdated(OperationError):
    """The plan was made for something else than what would be done now."""


class VerificationFailed(OperationError):
    """Documents are not what the source says."""
