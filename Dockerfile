# The workers (`cdc run`) and `cdc web`. The local stack's artefacts (extra `stack`) are not in it: here the services come by address.
FROM python:3.11-slim

RUN useradd --system --uid 10001 --create-home --home-dir /app cdc \
    && install -d -o cdc /var/lib/cdc
WORKDIR /app

# The lock also pins the build backend and the developers' tools; as constraints it installs only what is needed.
COPY pyproject.toml README.md requirements.lock ./
COPY pipeline pipeline
COPY connectors connectors
COPY projections projections
RUN sed -e 's/ \\$//' -e '/^ *--hash/d' requirements.lock > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt --editable ".[web,redis,mariadb,otel,snapshots]" \
    && rm /tmp/constraints.txt

USER cdc
VOLUME /var/lib/cdc
ENV CDC_STATE_DIR=/var/lib/cdc
STOPSIGNAL SIGTERM
ENTRYPOINT ["cdc"]
CMD ["run"]
