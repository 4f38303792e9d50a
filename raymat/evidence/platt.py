"""Probabilities calibrated by nodules that no weight was fitted to (Platt, 1999).

A network that is stopped by its AUROC ranks; how far its probabilities are from what comes true, nothing in its
training looked at.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def calibrated(validation: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test probabilities after the logistic regression that sets those of the validation nodules right.

    Parameters
    ----------
    validation, test : probabilities of a network (n), (m)
    labels : 0 or 1 of the validation nodules (n), both among them

    Returns
    -------
    float (m)
        In the order of ``test``, turned round where the network ranks the validation nodules the wrong way.
    """
    logits, asked_logits = (logit(np.clip(part, 1e-9, 1 - 1e-9))[:, None] for part in (validation, test))
    # A dozen nodules may be classified without an error; the regression's penalty keeps their slope finite.
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(logits, labels).predict_proba(asked_logits)[:, 1]
