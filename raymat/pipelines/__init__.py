"""The work of the commands that run on Ray: each takes plain functions from elsewhere and runs them on a cluster."""
