"""Findings: what is wrong, where it was written, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

Level = Literal["error", "warning", "hint"]
_ORDER: dict[Level, int] = {"error": 0, "warning": 1, "hint": 2}


class Finding(BaseModel):
    """One thing that is wrong, or might be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Level
    error: str
    """Its kind, `UnknownColumn`."""
    projection: str
    file: str
    """Relative to the working directory where it lies below."""
    line: int
    subject: str
    """`OrderDocument.customer`."""
    message: str
    suggestion: str = ""

    @field_validator("file")
    @classmethod
    def _relative(cls, file: str) -> str:
        try:
            return str(Path(file).relative_to(Path.cwd()))
        except ValueError:
            return file


def sort_key(finding: Finding) -> tuple[object, ...]:
    """Errors first, then as the files are read."""
    return _ORDER[finding.level], finding.file, finding.line, finding.subject, finding.error, finding.message


def split(message: str) -> tuple[str, str]:
    """What happened, and what to do: a message has them on both sides of its last semicolon."""
    said, semicolon, advice = message.rpartition("; ")
    if not semicolon:
        return message, ""
    return said + ".", advice[0].upper() + advice[1:]
