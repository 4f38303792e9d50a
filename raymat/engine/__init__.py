"""Where work meets Ray: the cluster, the worker that runs stages, batches, tries, progress and logs."""
