"""Predictions of classifiers that were never trained."""

import numpy as np
import pandas as pd


def draw_predictions(strength: dict[str, float], seeds: int = 3, n: int = 60) -> pd.DataFrame:
    """One row per nodule and trial; ``strength`` is, for each input, how well it separates the classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3 == 0
    rows = []
    for name, strong in strength.items():
        for seed in range(seeds):
            logits = strong * labels + rng.normal(0, 1, n)
            rows.append(
                pd.DataFrame(
                    {
                        "network": "net",
                        "input": name,
                        "seed": seed,
                        "split": 0,
                        "nodule_id": [f"n{i}" for i in range(n)],
                        "patient_id": [f"p{i // 2}" for i in range(n)],
                        "label": labels.astype(int),
                        "probability": 1 / (1 + np.exp(-logits)),
                        "calibrated": 1 / (1 + np.exp(-logits)),
                        "volume_mm3": 100.0 + np.arange(n),
                        "diameter_mm": 5.0 + np.arange(n) / 10,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)
