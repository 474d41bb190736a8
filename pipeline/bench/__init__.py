"""`cdc bench`: what the pipeline takes, beside what Elasticsearch alone takes on the same documents."""
