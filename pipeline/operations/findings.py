"""Findings: what is wrong, where it was written, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from pipeline.authoring.catalog import Catalog
from pipeline.authoring.locate import place
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape

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


@dataclass(slots=True)
class Checked:
    """One projection under check, and what was found so far."""

    projection: Projection[Any]
    catalog: Catalog
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, error: str, message: str, shape: Shape | None = None, member: str = "", level: Level = "error"
    ) -> None:
        said, suggestion = split(message)
        file, line = self.projection.file, self.projection.line
        subject = self.projection.name
        if shape is not None:
            file, line = place(shape.document, member or None)
            subject = f"{shape.name}.{member}" if member else shape.name
        self.findings.append(
            Finding(
                level=level,
                error=error,
                projection=self.projection.name,
                file=file,
                line=line,
                subject=subject,
                message=said,
                suggestion=suggestion,
            )
        )
