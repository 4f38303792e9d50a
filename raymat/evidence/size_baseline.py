"""What size alone says of malignancy: a logistic regression on volume and diameter.

Readers rate large nodules malignant, so that anything from which size can be read has a high AUROC. A classifier has to
beat this, or distinguish size-matched nodules.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def size_scores(training: np.ndarray, labels: np.ndarray, test: np.ndarray, regularisation: float = 1.0) -> np.ndarray:
    """The probability of malignancy that the size gives each test nodule.

    Parameters
    ----------
    training, test : volume in mm3 and diameter in mm of each nodule (n, 2); their logarithms enter, scaled by the
        training nodules alone
    labels : 0 or 1 of the training nodules, both among them
    regularisation : C of the regression

    Returns
    -------
    float (n of test)
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation))
    model.fit(np.log(training), labels)
    return model.predict_proba(np.log(test))[:, 1]
