"""Pages as HTML: templates with autoescape, numbers as people read them, and headers that keep scripts of others out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final

from fastapi import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.operations.refused import DeadLetter, Quarantined
from pipeline.web.dashboard.pages import Page, command
from pipeline.web.dashboard.sessions import Visitor

MEDIA: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
STATES: Final = {
    "running": ("ok", "●"), "catching up": ("busy", "◐"), "standby": ("idle", "○"), "new": ("idle", "○"),
    "stopped": ("idle", "■"), "moved": ("idle", "○"), "gone": ("bad", "▲"), "failed": ("bad", "▲"),
    "ok": ("ok", "●"), "warning": ("warn", "◆"), "error": ("bad", "▲"), "not known": ("warn", "◆"), "not applied": ("idle", "○"),
    "paused": ("warn", "◆"), "equal": ("ok", "●"), "differs": ("bad", "▲"), "unassigned": ("warn", "◆"), "restarting": ("busy", "◐"),
}  # fmt: skip
"""Each state's tone and its sign: a shape of its own, so that colour is never all that tells."""
COMMAND: Final = re.compile(r"\bcdc [a-z][^;`]*[^;`.\s]")
WIDTH, HEIGHT = 120, 28


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """`0.4 s`, `3 min`, `2.5 h`."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    return (
        f"{value / 60:.0f} min"
        if value < 6000
        else f"{value / 3600:.1f} h"
        if value < 360_000
        else f"{value / 86400:.0f} days"
    )


def size(count: float | None) -> str:
    """Bytes as `12 kB`."""
    if count is None:
        return "-"
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while abs(count) >= 1000 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"


def moment(value: datetime | float) -> Markup:
    at = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(at.isoformat(), f"{at:%F %T}")


def lsn(position: int) -> str:
    """A place in Postgres's log as Postgres writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def told(text: str) -> Markup:
    """A sentence with its commands marked as such."""
    found, end = Markup(), 0
    for match in COMMAND.finditer(text):
        found += escape(text[end : match.start()]).replace("`", "") + Markup("<code>{}</code>").format(match[0])
        end = match.end()
    return found + escape(text[end:]).replace("`", "")


def state(name: str) -> Markup:
    tone, sign = STATES.get(name, ("bad", "▲"))
    return Markup('<span class="state {}"><span class="sign" aria-hidden="true">{}</span> {}</span>').format(
        tone, sign, name
    )


def plain(value: Any) -> str:
    """As JSON in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


def retry_letter(letter: DeadLetter) -> str:
    """The command that reads the row behind a dead letter again."""
    return command("deadletters", "retry", letter.projection, letter.id)


def retry(refused: Quarantined) -> str:
    """The command that writes a document of the quarantine again."""
    key = refused.key[0] if len(refused.key) == 1 else refused.key
    return command("quarantine", "retry", refused.projection, plain(key))


def spark(values: Sequence[float | None]) -> Markup:
    """Seconds behind as a small curve: up is later. Its words are for those who don't see it."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return Markup('<span class="faint">-</span>')
    top = max(2.0, *known)
    step = WIDTH / (len(values) - 1)
    points = [
        f"{i * step:.1f},{HEIGHT - 2 - (HEIGHT - 4) * v / top:.1f}" for i, v in enumerate(values) if v is not None
    ]
    says = f"worst of the last {len(known)} looks {seconds(max(known))}, now {seconds(known[-1])}"
    (first, _), (x, y) = points[0].split(","), points[-1].split(",")
    return Markup(
        '<svg class="spark" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}"><title>{2}</title>'
        '<polygon points="{4},{1} {3} {5},{1}"/><polyline points="{3}"/><circle cx="{5}" cy="{6}" r="2"/></svg>'
    ).format(WIDTH, HEIGHT, says, " ".join(points), first, x, y)


def _static() -> dict[str, tuple[bytes, str]]:
    folder = files("pipeline.web.dashboard") / "static"
    return {
        entry.name: (entry.read_bytes(), MEDIA[entry.name.rpartition(".")[2]])
        for entry in folder.iterdir()
        if entry.is_file()
    }


STATIC: Final = _static()


def static(name: str) -> str:
    """The address of a file, another one for other bytes."""
    return f"/static/{name}?{hashlib.sha256(STATIC[name][0]).hexdigest()[:12]}"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("pipeline.web.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (number, seconds, size, moment, lsn, pretty, told, state, plain, retry_letter, retry, spark)
    made.filters.update({each.__name__: each for each in own})
    made.globals["static"] = static
    return made


TEMPLATES: Final = _environment()


def html(template: str, status_code: int = 200, **given: Any) -> Response:
    """A page. No template has a script or a style of its own, and the policy would refuse them."""
    text = TEMPLATES.get_template(template).render(**given)
    return Response(text, status_code, headers=dict(HEADERS), media_type="text/html")


def page(template: str, model: Page, visitor: Visitor, *, twin: str, project: str, path: str) -> Response:
    """A page of a model, as this visitor may see and use it."""
    return html(template, page=model, visitor=visitor, twin=twin, project=project, path=path)


def file(name: str) -> Response:
    """One of the files beside the pages."""
    if name not in STATIC:
        return Response("There is no such file.\n", 404, media_type="text/plain")
    data, media = STATIC[name]
    headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return Response(data, headers=headers, media_type=media)
