"""What the commands of the evidence leave in their outputs, and the report looks for."""

# raymat readers
READERS_NOTE, READERS, FORETOLD = "readers.json", "readers", "foretold.parquet"

# raymat classify
CLASSIFY_NOTE, NODULES, PREDICTIONS = "classify.json", "nodules.parquet", "predictions.parquet"
TRIALS, TABLE, BY_KIND, COMPARISONS, FIGURE = "trials.csv", "table.csv", "kinds.csv", "comparisons.csv", "figure5"

# raymat evaluate
EVALUATE_NOTE = "evaluate.json"
