"""3DMM as MLflow serves it."""

from __future__ import annotations

import numpy as np
from mlflow.pyfunc import PythonModel


class ServedNetwork(PythonModel):
    """3DMM as MLflow serves it: HU (z, y, x), or (channels, z, y, x), on the network's grid in, alpha out."""

    def load_context(self, context) -> None:
        """Read the weights, once per server."""
        from raymat.network.inference import Ensemble

        self.ensemble = Ensemble([context.artifacts["weights"]])

    def predict(self, context, model_input: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Alpha (z, y, x) of an image (z, y, x) in HU, or of several channels (channels, z, y, x)."""
        return self.ensemble.predict(np.asarray(model_input, np.float32)).alpha
