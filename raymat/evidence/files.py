"""The files of the evidence commands that the report reads."""

# raymat readers
READERS_NOTE, READERS, MEASUREMENTS = "readers.json", "readers", "measurements.parquet"
EARLIER_MEASUREMENTS = "foretold.parquet"

# raymat classify
CLASSIFY_NOTE, NODULES, PREDICTIONS = "classify.json", "nodules.parquet", "predictions.parquet"
TRIALS, TABLE, BY_KIND, COMPARISONS, FIGURE = "trials.csv", "table.csv", "kinds.csv", "comparisons.csv", "figure5"

# raymat evaluate
EVALUATE_NOTE = "evaluate.json"
