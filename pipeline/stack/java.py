"""What the services on the JVM have in common: the program, its flags and their log's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.stack import artefacts

_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %-5p %m (%c{1})%n%throwable
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
logger.clients.name = org.apache.kafka.clients
logger.clients.level = warn
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
logger.jersey.name = org.glassfish.jersey
logger.jersey.level = error
"""


def kafka_java(folder: Path, heap: str, main: str, *arguments: str) -> list[str]:
    """The command of a program of Kafka's; what its JVM loaded is kept in `folder` and makes the next start shorter."""
    log4j = folder / "log4j2.properties"
    log4j.write_text(_LOG4J, "utf-8")
    log4j.chmod(0o644)
    return [
        str(artefacts.java()),
        "-Xms256m",
        f"-Xmx{heap}",
        "-XX:+UseParallelGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:+AutoCreateSharedArchive",
        f"-XX:SharedArchiveFile={folder / (main.rpartition('.')[2] + '.jsa')}",
        "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={folder}",
        f"-Dlog4j2.configurationFile={log4j}",
        "-cp",
        f"{artefacts.place('kafka')}/*",
        main,
        *arguments,
    ]


def properties(values: Mapping[str, object]) -> str:
    """A properties file's text."""
    return "".join(f"{key}={escaped(str(value))}\n" for key, value in values.items())


def escaped(value: str) -> str:
    """A value as a properties file wants it."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")
