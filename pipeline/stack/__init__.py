"""The local stack: Postgres, Kafka, Kafka Connect and Elasticsearch from public artefacts, without Docker or root."""
