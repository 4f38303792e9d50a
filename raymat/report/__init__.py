"""One self-contained page of what a dataset, its measurements and its classifiers show. No Ray, no MLflow."""
