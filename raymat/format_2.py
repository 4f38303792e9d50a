"""What raymat wrote before format 3: the columns of its files. Nothing in here changes any more.

A matte did not say what its alpha means, and a nodule was not of a kind: such datasets and releases are of kind "any".
"""

from __future__ import annotations

import pyarrow as pa

from raymat import format_1

NUMBER = 2

_OF_A_MATTE = [("key", pa.string()), ("digest", pa.string()), ("key_1", pa.string())]
_HOW_SOLVED = ("iterations", "residual", "converged", "seconds", "unknowns", "solver")
_OF_A_SOLVE = ("method", *_HOW_SOLVED, "score")

MATTE = pa.struct([*format_1.MATTE, *_OF_A_MATTE])
SCHEMA = format_1.SCHEMA.set(format_1.SCHEMA.get_field_index("mattes"), pa.field("mattes", pa.list_(MATTE)))
SOLVE = pa.struct([*(format_1.MATTE.field(name) for name in _OF_A_SOLVE), *_OF_A_MATTE])
_OUTCOME_1 = format_1.OUTCOME.set(format_1.OUTCOME.get_field_index("solves"), pa.field("solves", pa.list_(SOLVE)))
OUTCOME = _OUTCOME_1.insert(2, pa.field("source", pa.string()))
SCHEMAS = {"manifest": format_1.MANIFEST, "outcomes": OUTCOME, "nodules": SCHEMA}  # of a dataset, by folder

# A row of a release; its index was that of format 1.
_PLACED = ("method", "spacing", "origin", "direction", "metadata", "notes")
_ARRAYS = ("image", "readers", "trimap", "true_alpha", "alpha")
RECORD = pa.schema(
    [
        *(format_1.RECORD.field(name) for name in ("nodule_id", "patient_id", "source", "key", *_PLACED, *_ARRAYS)),
        *(format_1.MATTE.field(name) for name in _HOW_SOLVED if name != "seconds"),
        *(format_1.RECORD.field(name) for name in ("scores", "score", "decided_by", "reviewers")),
    ]
)

# What a column of today was called then, and in format 1.
FORMERLY = {"true_membership": "true_alpha"}
