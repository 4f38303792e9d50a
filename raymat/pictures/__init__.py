"""Pictures of nodules, mattes, predictions and results."""
