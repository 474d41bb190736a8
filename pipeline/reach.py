"""Why Kafka does not let one in: its client says only that it could not connect."""

from __future__ import annotations

import asyncio
import ssl

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from pipeline.addresses import KafkaAddress
from pipeline.errors import SourceUnavailable

PATIENCE_MS = 5_000


async def unreachable(kafka: KafkaAddress, error: BaseException) -> SourceUnavailable:
    """The error to raise where a client could not connect, or lost its connection; asks the first server once more."""
    reason = await _reason(kafka) or f"{str(error) or type(error).__name__}; is it up?"
    return SourceUnavailable(f"Kafka at {kafka} can't be reached: {reason}")


async def _reason(kafka: KafkaAddress) -> str:
    host, _, port = kafka.bootstrap.partition(",")[0].strip().rpartition(":")
    options = {name: item for name, item in kafka.options().items() if name != "bootstrap_servers"}
    try:
        connection = await create_conn(host, int(port), request_timeout_ms=PATIENCE_MS, **options)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message}): set kafka.ca to the authority that signed it."
    except ssl.SSLError as error:
        why = error.reason or "no reason given"
        return f"TLS failed ({why}): it may speak none (kafka.tls), or ask for a certificate (kafka.certificate)."
    except (AuthenticationFailedError, SaslAuthenticationFailed):
        return f"it refuses the user name or password of {kafka.username} ({kafka.mechanism}): kafka.username, kafka.password."
    except UnsupportedSaslMechanismError:
        return f"it does not take {kafka.mechanism}: set kafka.mechanism to one that it does."
    except ConnectionRefusedError:
        return "nothing listens there; is it up?"
    except (KafkaError, OSError):
        return await _closed(host, int(port), kafka)
    except ValueError:
        return f"{kafka} is no host:port: set kafka.bootstrap."
    connection.close()
    return ""


async def _closed(host: str, port: int, kafka: KafkaAddress) -> str:
    """It listens and hangs up: a listener of TLS spoken to without it, or one that wants a password or a certificate."""
    try:
        async with asyncio.timeout(PATIENCE_MS / 1000):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (OSError, TimeoutError):
        return ""
    if kafka.tls is None:
        return "it hangs up: it may want TLS (kafka.tls, kafka.ca) or a password (kafka.username)."
    wanted = "a certificate (kafka.certificate)" if not kafka.username else "another mechanism (kafka.mechanism)"
    return f"it hangs up: it may want {wanted} or a password (kafka.username)."


__all__ = ["unreachable"]
