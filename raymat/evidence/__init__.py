"""What a matte is worth: against readers who were left out, and by the diagnoses it allows. No Ray, no torch."""
