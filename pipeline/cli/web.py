"""`cdc web`: serves read models over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import err, load_settings
from pipeline.errors import SettingsError

app = typer.Typer(help="Serve the read models over HTTP.", invoke_without_command=True)


@app.callback()
def web(
    ctx: typer.Context,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this machine reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    public: Annotated[bool, typer.Option("--open", help="Everybody may read; no key is asked for.")] = False,
) -> None:
    """Serve the read models over HTTP until stopped."""
    if ctx.invoked_subcommand is not None:
        return
    try:
        import uvicorn

        from pipeline.web.app import create_app
    except ImportError as missing:
        if missing.name is None or missing.name.startswith("pipeline"):
            raise
        raise SettingsError("Serving read models needs its extra: pip install 'cdc-pipeline[web]'.") from None
    served = create_app(load_settings(), public=public)
    err().print(f"Serving {', '.join(served.state.projections)} at http://{host}:{port}")
    uvicorn.run(served, host=host, port=port, log_level="warning")
