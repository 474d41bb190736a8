"""The example of a canary at the pod level fits the pod that it patches, the command line, and the header that the app reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.root import run
from pipeline.web.versions import HEADER

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def container(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in manifest["spec"]["template"]["spec"]["containers"] if c["name"] == name)
    return found


POD, SERVICE = read("cdc.yaml")
(PATCH,) = read("canary-pod.yaml")
NEXT_SERVICE, ROUTE = read("canary-istio.yaml")


def test_the_second_web_process_is_the_first_but_for_its_port_and_its_limits() -> None:
    web, following = container(POD, "web"), container(PATCH, "web-next")
    assert {key: following[key] for key in ("image", "env", "volumeMounts")} == {
        key: web[key] for key in ("image", "env", "volumeMounts")
    }
    port = following["ports"][0]["containerPort"]
    assert following["args"] == [str(port) if part == "8000" else part for part in web["args"]]
    assert port not in {
        p["containerPort"] for c in POD["spec"]["template"]["spec"]["containers"] for p in c.get("ports", ())
    }
    assert {following[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"http-next"}


@pytest.mark.parametrize("name", ["workers", "web", "web-next"])
def test_every_container_runs_a_command_that_there_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = container(PATCH if name == "web-next" else POD, name)["args"]
    assert run([*args, "--help"]) == 0, capsys.readouterr().err


def test_the_share_goes_to_the_process_of_the_next_version_with_the_header_that_names_it() -> None:
    ports = {p["name"] for p in container(PATCH, "web-next")["ports"]}
    assert {port["targetPort"] for port in NEXT_SERVICE["spec"]["ports"]} <= ports
    assert (
        NEXT_SERVICE["spec"]["selector"] == SERVICE["spec"]["selector"] == POD["spec"]["template"]["metadata"]["labels"]
    )

    routes = {rule["name"]: rule for rule in ROUTE["spec"]["http"]}
    asked, share, rest = (routes[name] for name in ("as-asked", "share", "rest"))
    services = {s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]} for s in (SERVICE, NEXT_SERVICE)}
    for rule in routes.values():
        for route in rule["route"]:
            assert route["destination"]["port"]["number"] in services[route["destination"]["host"]]
    assert sum(route["weight"] for route in share["route"]) == 100
    live, following = share["route"]
    assert "headers" not in live and following["headers"]["request"]["set"] == {HEADER: "next"}
    assert {r["destination"]["host"] for rule in (asked, rest) for r in rule["route"]} == {SERVICE["metadata"]["name"]}
    assert list(asked["match"][0]["headers"]) == [HEADER.lower()]
    assert re.fullmatch(asked["match"][1]["uri"]["regex"], "/v1/orders/changes")
    assert "/v1/orders/changes".startswith(share["match"][0]["uri"]["prefix"]), "so the feed has to be matched before"
