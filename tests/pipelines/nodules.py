"""Small datasets of balls with a soft edge, committed as a build would commit them."""

import numpy as np

from raymat.nodule import Matte, Nodule, to_table
from raymat.store import Store

SHAPE = (16, 24, 24)


def a_ball(number: int, shape=SHAPE, spacing: float = 0.5) -> Nodule:
    """A nodule whose alpha is known, in noise; two readers, two mattes, one of them chosen."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(shape)
    middle = (np.array(shape) - 1) / 2 + rng.uniform(-1, 1, 3)
    distance = np.sqrt((z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2)
    radius = rng.uniform(3.5, 5.5)
    alpha = np.clip((radius + 1.5 - distance) / 3, 0, 1).astype(np.float32)
    image = (-850 + 880 * alpha + rng.normal(0, 30, shape)).astype(np.float32)
    readers = [(distance < radius + shift).astype(np.uint8) for shift in (-0.8, 0.9)]
    trimap = np.where(alpha == 1, 255, np.where(distance < radius + 2.5, 128, 0)).astype(np.uint8)
    rough = (distance < radius).astype(np.float32)
    return Nodule(
        f"ball{number}",
        f"patient{number}",
        "phantoms",
        image=image,
        spacing=(spacing,) * 3,
        origin=(-100.0, 10.0, 20.0 + number),
        direction=np.eye(3),
        readers=readers,
        trimap=trimap,
        true_alpha=alpha,
        candidates=[Matte("cf+", alpha, score=0.9), Matte("knn+", rough, score=0.4)],
        method="cf+",
        outcome="accepted",
        key=f"key-{number}",
    )


def write_balls(path, count: int, **how) -> str:
    """A dataset of ``count`` balls of as many patients."""
    store = Store.create(path)
    nodules = [a_ball(number, **how) for number in range(count)]
    store.write_manifest(
        {"nodule_id": n.nodule_id, "patient_id": n.patient_id, "source": n.source, "readers": 2, "fingerprint": "f"}
        | {"location": "{}", "problem": "", "key": n.key}
        for n in nodules
    )
    store.add_to_index(store.commit(to_table(nodules)))
    return str(path)
