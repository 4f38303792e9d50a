"""Nodules as a dataset of Ray Data."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import ray.data

from raymat.nodule import ARRAY, Nodule, array_to_struct, required

# Named, since the blocks of a dataset must have the same types, whatever is null in one of them.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("nodule_id", "patient_id", "method", "kind")),
        ("spacing", pa.list_(pa.float64())),
        *((name, ARRAY) for name in ("image", "alpha", "membership", "calibrated", "trimap")),
        ("readers", pa.list_(ARRAY)),
    ]
)
CHANNELS = pa.field("channels", pa.list_(pa.struct([("name", pa.string()), ("image", ARRAY)])))


def ray_dataset(nodules: Sequence[Nodule]) -> ray.data.Dataset:
    """Nodules as a lazy ``ray.data.Dataset``, one per row, read by the workers.

    Columns: ``nodule_id, patient_id, method, kind, spacing`` and ``image, alpha, membership, calibrated, trimap,
    readers``, an array being a struct of bytes, shape and dtype as on disk (``raymat.nodule.struct_to_array``): crops
    differ in size. What a nodule does not have is null. Of several channels there is a column more, ``channels``, with
    the name and image of every other one.
    """
    rows = ray.data.range(len(nodules))
    # Ray's annotation of the function has room for the batch alone, not for fn_args.
    return rows.map_batches(_records, fn_args=(nodules,), batch_size=1, batch_format="pyarrow")  # type: ignore[arg-type]


def _records(batch: pa.Table, nodules: Sequence[Nodule]) -> pa.Table:
    some = [nodules[number] for number in batch["id"].to_pylist()]
    # Those of one dataset have the same channels.
    schema = SCHEMA.append(CHANNELS) if any(nodule.channels for nodule in some) else SCHEMA
    return pa.Table.from_pylist(
        [
            {
                "nodule_id": nodule.nodule_id,
                "patient_id": nodule.patient_id,
                "method": nodule.method,
                "kind": nodule.kind,
                "spacing": list(required(nodule.spacing, nodule, "spacing")),
                "image": array_to_struct(nodule.image),
                "alpha": array_to_struct(nodule.alpha),
                "membership": array_to_struct(nodule.membership),
                "calibrated": array_to_struct(nodule.calibrated),
                "trimap": array_to_struct(nodule.trimap),
                "readers": [array_to_struct(mask) for mask in nodule.readers],
                "channels": [{"name": c.name, "image": array_to_struct(c.image)} for c in nodule.channels],
            }
            for nodule in some
        ],
        schema=schema,
    )
