"""A nodule as volumes on its working grid, placed in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymat.export.description import chosen_matte, description
from raymat.nodule import InputError, Nodule, required
from raymat.volume import nodule_grid, write_volume
from raymat.words import file_name


def write_volumes(nodule: Nodule, folder: Path, ending: str, name: str = "alpha") -> Path:
    """Write image, chosen matte, trimap and readers' masks, those that there are, as ``folder/alpha.nii.gz`` and so on.

    All lie on one grid of the nodule's spacing, in patient coordinates (LPS in NRRD, RAS in NIfTI, as these formats
    have it): image and alpha float32, the others uint8. The header of the matte's file names its kind and method. Of
    several channels ``image.nii.gz`` is the one that calibrates, ``image-PET.nii.gz`` another, float32; the headers
    name them.

    Parameters
    ----------
    ending : ".nii.gz" or ".nrrd"
    name : of the matte's file

    Raises
    ------
    InputError
        The nodule has no chosen matte, or a file cannot be written.
    """
    matte = chosen_matte(nodule)
    volumes: dict[str, np.ndarray] = {"image": required(nodule.image, nodule, "image"), name: matte.alpha}
    about = {name: description(matte)}
    if nodule.channels:
        about["image"] = nodule.all_channels[0].name
        volumes |= {f"image-{file_name(channel.name)}": channel.image for channel in nodule.channels}
    if nodule.trimap is not None:  # what a network predicted has none, and no readers
        volumes["trimap"] = nodule.trimap
    grid = nodule_grid(nodule, volumes["image"])
    volumes |= {f"reader{number}": mask for number, mask in enumerate(nodule.readers, start=1)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    for part, array in volumes.items():
        write_volume(folder / f"{part}{ending}", array, grid, about.get(part, ""))
    return folder
