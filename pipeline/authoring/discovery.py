"""Discovery: every projection in a folder, found by file; what is broken is collected, not raised one at a time."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.authoring import builds
from pipeline.authoring.catalog import did_you_mean
from pipeline.authoring.locate import place, place_of_message
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.errors import BadShape, DefinitionError, DuplicateProjection, SettingsError
from pipeline.settings import Settings

PACKAGE = "cdc_projections"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a projection from being used."""

    error: str
    """The error's class, `BadShape`."""
    message: str
    file: str
    line: int
    subject: str = ""
    """`OrderDocument.customer`, where it is known."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.error}: {self.message}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: the projections that are whole, by name, and what is wrong with the others."""

    projections: Mapping[str, Projection[Any]]
    problems: tuple[Problem, ...]


def look(folder: Path) -> Found:
    """Import every file of the folder but those whose name begins with `_`, and collect projections and problems."""
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder}: run this where the project is, or see `cdc init`.")
    found: dict[str, Projection[Any]] = {}
    problems: list[Problem] = []
    _fresh_package(folder)
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        module = _imported(path, problems)
        for projection in _projections(module) if module is not None else ():
            if not _known(projection, found, problems) and _whole(projection, problems):
                found[projection.name] = projection
    return Found(found, tuple(dict.fromkeys(problems)))


def discover(folder: Path) -> list[Projection[Any]]:
    """The folder's projections, by name; raises DefinitionError with every problem, one a line."""
    found = look(folder)
    if found.problems:
        raise _all(found.problems)
    return [found.projections[name] for name in sorted(found.projections)]


def live(settings: Settings) -> list[Projection[Any]]:
    """The projections of the settings' folder, each as the build that readers see."""
    return [builds.seen(settings, projection) for projection in discover(settings.projections)]


def find(settings: Settings, name: str) -> Projection[Any]:
    """One projection by name, as the build that readers see; what is wrong in other files does not matter here."""
    found = look(settings.projections)
    if name in found.projections:
        return builds.seen(settings, found.projections[name])
    if found.problems:
        raise _all(found.problems)
    raise DefinitionError(
        f"{settings.projections} has no projection {name!r}{did_you_mean(name, found.projections)}"
        if found.projections
        else f"{settings.projections} has no projection yet: write one, or see `cdc init`."
    )


def _all(problems: tuple[Problem, ...]) -> DefinitionError:
    return DefinitionError(f"{len(problems)} in the projections:\n" + "\n".join(f"  {p}" for p in problems))


def _fresh_package(folder: Path) -> None:
    """A package of our own over the folder, so that a file may import its neighbours (`from ._money import …`)."""
    for name in [n for n in sys.modules if n == PACKAGE or n.startswith(PACKAGE + ".")]:
        del sys.modules[name]
    package = ModuleType(PACKAGE, "The projections of the working directory.")
    package.__path__ = [str(folder.resolve())]
    package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
    sys.modules[PACKAGE] = package
    importlib.invalidate_caches()


def _imported(path: Path, problems: list[Problem]) -> ModuleType | None:
    name = f"{PACKAGE}.{path.stem}"
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        file = error.filename or str(path)
        problems.append(Problem("SyntaxError", error.msg, file, error.lineno or 1))
    except Exception as error:  # an author's file may raise anything at import
        problems.append(_raised(path, error))
    return None


def _raised(path: Path, error: Exception) -> Problem:
    """Where the folder's code was when it raised: in this file, or in a neighbour that it imports."""
    folder = path.resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    own = [(f.filename, f.lineno or 1) for f in frames if Path(f.filename).parent == folder]
    file, line = own[-1] if own else (str(path.resolve()), 1)
    # pydantic's messages go on with advice about its own settings
    message = str(error).partition("\n")[0].partition(" Set `arbitrary_types_allowed")[0]
    return Problem(type(error).__name__, message + _called_wrongly(error), file, line)


def _called_wrongly(error: Exception) -> str:
    """What a function of ours takes, where the author called it with something else."""
    name, called, _ = str(error).partition("() ")
    function = getattr(sys.modules["pipeline"], name, None) if isinstance(error, TypeError) and called else None
    if not callable(function):
        return ""
    parameters = signature(function).parameters.values()
    takes = ", ".join(f"{p.name}=" if p.kind is p.KEYWORD_ONLY else p.name for p in parameters)
    return f"; it takes {takes}"


def _projections(module: ModuleType) -> Iterator[Projection[Any]]:
    seen: set[int] = set()
    for value in vars(module).values():
        if isinstance(value, Projection) and id(value) not in seen:
            seen.add(id(value))
            yield value


def _known(projection: Projection[Any], found: Mapping[str, Projection[Any]], problems: list[Problem]) -> bool:
    """Whether the name is taken: by itself, imported from a neighbour, or by another one."""
    other = found.get(projection.name)
    if other is None:
        return False
    if other is not projection:
        problems.append(
            Problem(
                DuplicateProjection.__name__,
                f"{projection.name!r} is the name of a projection in {Path(other.file).name}:{other.line} already; "
                "give one of them another with name=….",
                projection.file,
                projection.line,
                projection.name,
            )
        )
    return True


def _whole(projection: Projection[Any], problems: list[Problem]) -> bool:
    try:
        shape_of(projection.shape)
    except BadShape as error:
        for line in str(error).splitlines():
            file, number, message, subject = place_of_message(projection.shape, line)
            problems.append(Problem(BadShape.__name__, message, file, number, subject))
        return False
    except Exception as error:  # a type hint may name what is not there
        file, number = place(projection.shape)
        problems.append(Problem(type(error).__name__, str(error), file, number, projection.shape.__name__))
        return False
    return True
