"""The only rooms that know Ray: each takes plain functions from elsewhere and runs them on a cluster."""
