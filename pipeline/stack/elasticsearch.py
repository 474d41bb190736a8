"""Elasticsearch of the local stack: one node without security and without optional modules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx

from pipeline.stack import artefacts, users
from pipeline.stack.files import write_atomically
from pipeline.stack.processes import Command
from pipeline.stack.site import Site, listens

NAME = "elasticsearch"
MAPS_WANTED = 262_144


def address(site: Site) -> str:
    """The REST interface."""
    return f"http://127.0.0.1:{site.port(NAME)}"


def prepare(site: Site) -> Command:
    """Write the node's configuration, and say how to start it."""
    folder = site.directory(NAME)
    program = artefacts.place(NAME)
    config, temporary = folder / "config", folder / "tmp"
    for made in (config, temporary):
        made.mkdir(mode=0o700, exist_ok=True)
        users.give(made, site.user)
    write_atomically(config / "elasticsearch.yml", _configuration(site), owner=site.user)
    lines = (program / "config" / "jvm.options").read_text("utf-8").splitlines(keepends=True)
    # The module is not in this JRE; it only makes vector search faster.
    options = "".join(line for line in lines if "jdk.incubator.vector" not in line)
    write_atomically(config / "jvm.options", options, owner=site.user)
    shutil.copyfile(program / "config" / "log4j2.properties", config / "log4j2.properties")
    (config / "log4j2.properties").chmod(0o644)
    env = {
        "ES_PATH_CONF": str(config),
        "ES_JAVA_HOME": str(artefacts.place("jre")),
        "ES_JAVA_OPTS": "-Xms1g -Xmx1g",
        "ES_TMPDIR": str(temporary),
        "HOSTNAME": "localhost",
    }
    return Command(_launcher(program, config), cwd=program, env=env)


def _launcher(program: Path, config: Path) -> list[str]:
    """What `bin/elasticsearch` runs in the end, without its shell and its second JVM that asks for the version."""
    java = [str(artefacts.java()), "-Xms4m", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    properties = {
        "cli.name": "server",
        "cli.script": program / "bin" / "elasticsearch",
        "cli.libs": "lib/tools/server-cli",
        "es.path.home": program,
        "es.path.conf": config,
        "es.distribution.type": "zip",
        "es.java.type": "ES_JAVA_HOME",
    }
    flags = [f"-D{key}={value}" for key, value in properties.items()]
    main = "org.elasticsearch.launcher.CliToolLauncher"
    return [*java, *flags, "-cp", f"{program}/lib/*:{program}/lib/cli-launcher/*", main]


def _configuration(site: Site) -> str:
    folder = site.directory(NAME)
    values: dict[str, object] = {
        "cluster.name": "cdc",
        "node.name": "cdc-1",
        "discovery.type": "single-node",
        "network.host": "127.0.0.1",
        "http.port": site.free_port(NAME),
        "transport.port": site.free_port("elasticsearch-transport"),
        "path.data": str(folder / "data"),
        "path.logs": str(folder / "logs"),
        "cluster.routing.allocation.disk.threshold_enabled": False,
        "xpack.security.enabled": False,
    }
    maps = Path("/proc/sys/vm/max_map_count")
    if maps.exists() and int(maps.read_text("ascii")) < MAPS_WANTED:
        values["node.store.allow_mmap"] = False
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())


def answers(site: Site) -> bool:
    """Whether the cluster's health is yellow or green."""
    if not listens(site.port(NAME)):
        return False
    try:
        response = httpx.get(f"{address(site)}/_cluster/health", timeout=5, trust_env=False)
        return response.is_success and response.json()["status"] in ("yellow", "green")
    except (httpx.HTTPError, ValueError, KeyError):
        return False
