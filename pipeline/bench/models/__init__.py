"""The read models that are measured, as files for a project's folder."""
