"""The dashboard: pages that render the very reports that the command line prints, and their JSON twins."""
