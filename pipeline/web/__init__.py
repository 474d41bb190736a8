"""The query API and the dashboard: one ASGI app."""
