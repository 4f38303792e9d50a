"""What raymat wrote before format 2: the columns of its files, and what the keys of its nodules were made of.

Nothing in here changes any more. Datasets and releases of format 1 are read as if their columns were those of today
(``raymat.arrow.conform``), and a build keeps the prepared arrays and the mattes of a nodule that was committed then
while nothing that they depend on has changed (``raymat.reuse``). The files in ``tests/data/format-1`` keep this true.
"""

from __future__ import annotations

import pyarrow as pa

from raymat.arrow import ARRAY

NUMBER = 1

MATTE = pa.struct(
    [
        ("method", pa.string()),
        ("alpha", ARRAY),
        ("iterations", pa.int32()),
        ("residual", pa.float64()),
        ("converged", pa.bool_()),
        ("seconds", pa.float64()),
        ("unknowns", pa.int64()),
        ("solver", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("score", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("method", pa.string()),
        ("spacing", pa.list_(pa.float64())),
        ("origin", pa.list_(pa.float64())),
        ("direction", pa.list_(pa.float64())),
        ("metadata", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("image", ARRAY),
        ("readers", pa.list_(ARRAY)),
        ("trimap", ARRAY),
        ("true_alpha", ARRAY),
        ("mattes", pa.list_(MATTE)),
    ]
)
MANIFEST = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("readers", pa.int32()),
        ("fingerprint", pa.string()),
        ("location", pa.string()),
        ("problem", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("key", pa.string()),
    ]
)
SOLVE = pa.struct(
    [
        ("method", pa.string()),
        ("seconds", pa.float64()),
        ("iterations", pa.int32()),
        ("converged", pa.bool_()),
        ("unknowns", pa.int64()),
        ("solver", pa.string()),
        ("score", pa.float64()),
    ]
)
OUTCOME = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("method", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("shape", pa.list_(pa.int32())),
        ("solves", pa.list_(SOLVE)),
        ("shard", pa.string()),
    ]
)
SCHEMAS = {"manifest": MANIFEST, "outcomes": OUTCOME, "nodules": SCHEMA}  # of a dataset, by folder

# A row of a release.
RECORD = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("decided_by", pa.string()),
        ("reviewers", pa.list_(pa.string())),
        ("spacing", pa.list_(pa.float64())),
        ("origin", pa.list_(pa.float64())),
        ("direction", pa.list_(pa.float64())),
        ("metadata", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("image", ARRAY),
        ("readers", pa.list_(ARRAY)),
        ("trimap", ARRAY),
        ("alpha", ARRAY),
        ("true_alpha", ARRAY),
    ]
)

# A row of a release's index.
INDEX = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("decided_by", pa.string()),
        ("reviewers", pa.list_(pa.string())),
        ("readers", pa.int32()),
        ("shape", pa.list_(pa.int32())),
        ("scanner_spacing", pa.list_(pa.float64())),
        ("diameter_mm", pa.float64()),
        ("ratings", pa.string()),
        *((f"split_{number}", pa.string()) for number in range(4)),
        ("file", pa.string()),
        ("row", pa.int32()),
        ("image_digest", pa.string()),
        ("readers_digest", pa.string()),
        ("trimap_digest", pa.string()),
        ("alpha_digest", pa.string()),
    ]
)

# A key began with a digest of this number of characters, the same for all mattes of a nodule.
SOLVE_KEY_LENGTH, KEY_LENGTH = 24, 32
SOLVED_BY = "2"  # part of the digest
METHODS = ("cf", "knn", "lb", "if", "cf+", "knn+", "lb+", "if+")
# ``raymat.methods.Solver.identity`` of the solvers whose mattes those are.
SOLVERS = {
    "cf": "(2, [('epsilon', 1e-07)])",
    "knn": "(2, [('kernel', 'soft'), ('neighbors', (20, 10)), ('spatial_weights', (2.0, 0.1))])",
    "lb": "(2, [('epsilon', 1e-07)])",
    "if": "(2, [('epsilon', 1e-06), ('known_to_unknown', True), ('regularization', 1e-06)])",
}
