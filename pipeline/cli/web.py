"""`cdc web`: serves read models over HTTP."""

from __future__ import annotations

import gc
import logging
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.authoring.discovery import find, live
from pipeline.cli import logs
from pipeline.cli.output import As, as_json, err, load_settings, print_json, print_table
from pipeline.errors import SettingsError
from pipeline.operations import web_keys
from pipeline.operations.client_models import client_models
from pipeline.runtime import tracing

key = typer.Typer(help="Who may read: API keys.", no_args_is_help=True)
app = typer.Typer(help="Serve the read models over HTTP.", invoke_without_command=True)


def _file(help: str) -> Any:
    return typer.Option(exists=True, dir_okay=False, help=help, show_default=False)


@app.callback()
def web(
    ctx: typer.Context,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this machine reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    public: Annotated[bool, typer.Option("--open", help="Everybody may read; no key is asked for.")] = False,
    tls_cert: Annotated[Path | None, _file("Speak TLS with this certificate and its chain (PEM).")] = None,
    tls_key: Annotated[Path | None, _file("The certificate's private key (PEM), where it is not in its file.")] = None,
    tls_clients: Annotated[
        Path | None, _file("Let in only clients with a certificate of these authorities (PEM).")
    ] = None,
) -> None:
    """Serve the read models over HTTP until stopped."""
    if ctx.invoked_subcommand is not None:
        return
    if (tls_key or tls_clients) and not tls_cert:
        raise SettingsError("--tls-key and --tls-clients go with --tls-cert: give the certificate.")
    try:
        import uvicorn

        from pipeline.web.access import LOOPBACK
        from pipeline.web.app import create_app
        from pipeline.web.server import Server
    except ImportError as missing:
        if missing.name is None or missing.name.startswith("pipeline"):
            raise
        raise SettingsError("Serving read models needs its extra: pip install 'cdc-pipeline[web]'.") from None
    own = load_settings()
    tracing.start(own, "web")
    if not public and not web_keys.read(own).keys:
        err().print("There is no key yet, so nobody can read: cdc web key add NAME --scope '*'", style="yellow")
    served = create_app(own, public=public, hosts=LOOPBACK | {host, *own.web.hosts} if public else None)
    logs.start(own)
    config = uvicorn.Config(
        served, host=host, port=port, log_config=None, access_log=False, server_header=False, ssl_certfile=tls_cert,
        ssl_keyfile=tls_key, ssl_ca_certs=str(tls_clients) if tls_clients else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls_clients else ssl.CERT_NONE,
    )  # fmt: skip
    socket = config.bind_socket()
    socket.listen()  # who reads the address and comes at once waits until the app is there
    address = f"{'https' if tls_cert else 'http'}://{host}:{socket.getsockname()[1]}"
    names = ", ".join(served.state.models)
    logging.getLogger("cdc.web").info(
        "The dashboard is at %s/ and %s at %s/v1/, described in /openapi.json", address, names, address
    )
    gc.collect()
    gc.freeze()  # what is loaded by now stays: to look through it all again would hold up reads
    sys.setswitchinterval(0.0005)  # the thread that looks at the status gives way to reads sooner
    Server(config, served.state.feeds).run([socket])


@app.command()
def client(
    projections: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Only these.", show_default=False)
    ] = None,
) -> None:
    """Print a Python module of the read models' classes, for pipeline.client in another project."""
    own = load_settings()
    typer.echo(client_models([find(own, name) for name in projections] if projections else live(own)), nl=False)


@key.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who has it; said in the log.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help="A read model, of it some fields (orders:id,customer), * for all, dashboard, or operate; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    own = load_settings()
    projections = live(own)
    web_keys.check_fields(projections, scope or [])
    typer.echo(web_keys.add(own, name, scope or [], [projection.name for projection in projections]))


@key.command("list")
def show(output: As = None) -> None:
    """The keys by name, with their scopes."""
    found = web_keys.read(load_settings()).keys
    if as_json(output):
        print_json({"keys": [one.model_dump(mode="json", exclude={"sha256"}) for one in found]})
    else:
        lines = [(one.name, " ".join(one.scopes), f"{one.created_at:%Y-%m-%d %H:%M}") for one in found]
        print_table(("KEY", "SCOPES", "CREATED"), lines)


@key.command()
def remove(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Let a key open nothing any more, from the next request on."""
    web_keys.remove(load_settings(), name)


app.add_typer(key, name="key")
