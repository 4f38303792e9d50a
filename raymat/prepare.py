"""From the scanner's grid to the working grid: crop, 0.5 mm, trimap from the readers' masks (paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from raymat.arrays import BACKGROUND, FOREGROUND, UNKNOWN, box_around, triple
from raymat.channels import ChannelRange, own_grid, resampled, same_lattice, shortfall
from raymat.nodule import IMAGE_CHANNEL, Channel, InputError, Nodule, NoduleExcluded
from raymat.volume import Grid
from raymat.words import counted

FOREGROUND_RULES = ("intersection", "majority")

# Scanners write what lies outside their field of view as -2048 or -3024 HU; nothing in a body is below air.
FIELD_OF_VIEW_FLOOR = -1024.0

# A pixel counts as this many mm at most: 128 pixels of CT are 60 to 125 mm, 128 of PET would be half a metre.
LARGEST_PIXEL_MM = 1.0

LEAST_SPAN = 20.0  # HU: noise alone spans more
OF_SEVERAL = ("channels", "calibrate_by")  # what is said of the preparation of several channels alone

DOUBT_OF_HU = "is this HU?"


# Raised whenever the arrays of a prepared nodule change for the same input and parameters.
PREPARE_VERSION = "1"


@dataclass(frozen=True)
class PrepareParameters:
    """How a nodule is cropped, resampled and given its trimap.

    Attributes
    ----------
    crop_px : the crop's side in plane, scanner's pixels
    pad_slices : slices beyond the nodule at both ends
    spacing_mm : of the working grid, every dimension
    grow_out_mm, grow_in_mm : how far the unknown region grows into background and foreground
    foreground : "intersection" of the readers, or "majority" (more than half of them)
    intensity_range : (low, high); low is what lies beyond the edge of the scan (air in CT); of several channels that
        of the one that calibrates
    channels : of cases with several images, one per image in the order of the table; empty where each case has one
    calibrate_by : the name of the channel that calibrates, and that quality and measures go by; the first by default
    """

    crop_px: int = 128
    pad_slices: int = 3
    spacing_mm: float = 0.5
    grow_out_mm: float = 2.0
    grow_in_mm: float = 1.0
    foreground: str = "intersection"
    intensity_range: tuple[float, float] = (-1000.0, 400.0)
    channels: tuple[ChannelRange, ...] = ()
    calibrate_by: str = ""

    def __post_init__(self) -> None:
        if self.channels:
            chosen = self._checked_channels()
            object.__setattr__(self, "intensity_range", (chosen.low, chosen.high))
        elif self.calibrate_by:
            raise InputError(f"prepare: there are no several channels of which {self.calibrate_by!r} could calibrate")
        low, high = self.intensity_range
        # As floats, so that (-1000, 400) and [-1000.0, 400.0] are one set of parameters to every digest.
        object.__setattr__(self, "intensity_range", (float(low), float(high)))
        numbers = (low, high, self.spacing_mm, self.grow_out_mm, self.grow_in_mm)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"prepare: every parameter must be finite: {self}")
        if self.crop_px < 1 or self.pad_slices < 0:
            raise InputError(f"prepare: crop_px must be 1 or more and pad_slices 0 or more: {self}")
        if self.spacing_mm <= 0 or self.grow_out_mm < 0 or self.grow_in_mm < 0:
            raise InputError(f"prepare: spacing_mm must be above 0, grow_out_mm and grow_in_mm not below 0: {self}")
        if self.foreground not in FOREGROUND_RULES:
            raise InputError(
                f"prepare: foreground must be one of {', '.join(FOREGROUND_RULES)}, not {self.foreground!r}"
            )
        if low >= high:
            raise InputError(f"prepare: intensity_range must rise, not {self.intensity_range}")

    def _checked_channels(self) -> ChannelRange:
        """The channel that calibrates."""
        names = [channel.name for channel in self.channels]
        if len(names) == 1 or len({name.lower() for name in names}) < len(names):
            raise InputError(f"prepare: give two channels or more, each with a name of its own, not {', '.join(names)}")
        wanted = self.calibrate_by or names[0]
        if wanted not in names:
            raise InputError(f"prepare: no channel {wanted!r} to calibrate by; there are {', '.join(names)}")
        return self.channels[names.index(wanted)]

    def to_dict(self) -> dict[str, object]:
        """As plain values, for keys and notes; of one channel those of before there could be several."""
        values = asdict(self) | {"calibrate_by": self.calibrating}
        return {name: value for name, value in values.items() if self.channels or name not in OF_SEVERAL}

    @property
    def calibrating(self) -> str:
        """The name of the channel that calibrates, of several; empty for one."""
        return self.calibrate_by or (self.channels[0].name if self.channels else "")


def prepare(nodule: Nodule, parameters: PrepareParameters | None = None) -> Nodule:
    """The nodule on the working grid, with its trimap (paper, section 3: "Labelling Pipeline and Quality Control").

    The crop is centred in plane on the box around the union of the readers (or the non-background of a given trimap)
    and runs ``pad_slices`` beyond it at both ends. The working grid keeps the image's own axes and begins at the
    crop's outer edge; image and masks are resampled linearly, masks cut at one half. What lies beyond the edge of the
    scan is air (``intensity_range``'s low end) in which no reader marked anything; the unknown region grows into it as
    into any background.

    Parameters
    ----------
    nodule : Nodule
        On the scanner's grid: ``image`` (z, y, x) in HU, ``spacing``, ``origin``, ``direction``, and ``readers`` or
        ``trimap``; ``channels`` each on a grid of its own.
    parameters : PrepareParameters

    Returns
    -------
    Nodule
        A new record: ``image`` float32, ``readers`` and ``trimap`` uint8, ``true_membership`` and ``true_calibrated``
        float32 where they were given, all (z, y, x) on one grid of ``spacing_mm``; notes report padding, a widened crop
        and masks that vanished. Of several channels ``image`` is the one that calibrates, ``channels`` are the others;
        notes report those that lay on another grid.

    Raises
    ------
    InputError
        Arrays of different shapes, values that are not finite, or nothing left to solve; more or fewer channels than
        the parameters have, or one that does not cover the crop.
    NoduleExcluded
        The readers share no voxel.
    """
    parameters = parameters or PrepareParameters()
    image, grid = _checked(nodule)
    _check_number_of_channels(nodule, parameters)
    notes = list(nodule.notes)
    inside = nodule.trimap != BACKGROUND if nodule.trimap is not None else np.logical_or.reduce(nodule.readers)
    start, stop = _crop_box(inside, grid, parameters, notes)
    crop = Crop(grid, start, stop, parameters.spacing_mm)
    low = parameters.channels[0].low if parameters.channels else parameters.intensity_range[0]
    if crop.beyond:
        notes.append(f"padded with {low:g} beyond the edge of the scan: {crop.beyond}")

    seen = np.maximum(crop.cut(image), np.float32(min(FIELD_OF_VIEW_FLOOR, low)))
    if not np.isfinite(seen).all():
        raise InputError(
            f"{nodule.nodule_id}: {np.count_nonzero(~np.isfinite(seen))} voxels near the nodule are NaN or infinite"
        )
    if low < 0 and (doubt := doubt_of_hu(seen)):
        notes.append(doubt)
    values = crop.resample(seen, fill=low)
    true_membership, true_calibrated = (
        None if truth is None else crop.resample(crop.cut(truth), fill=0.0)
        for truth in (nodule.true_membership, nodule.true_calibrated)
    )

    readers: list[np.ndarray] = []
    if nodule.trimap is not None:
        trimap = _resampled_trimap(crop, nodule.trimap)
    else:
        for number, mask in enumerate(nodule.readers, start=1):
            resampled = crop.resample_mask(mask != 0)
            if resampled.any():
                readers.append(resampled)
            else:
                notes.append(f"the mask of reader {number} vanishes at {parameters.spacing_mm:g} mm and is left out")
        if not readers:
            raise NoduleExcluded(f"every reader's mask vanishes at {parameters.spacing_mm:g} mm")
        trimap = make_trimap(
            readers,
            (parameters.spacing_mm,) * 3,
            grow_out_mm=parameters.grow_out_mm,
            grow_in_mm=parameters.grow_in_mm,
            foreground=parameters.foreground,
        )
    for name, value in (("foreground", FOREGROUND), ("unknown", UNKNOWN), ("background", BACKGROUND)):
        if not (trimap == value).any():
            raise InputError(
                f"{nodule.nodule_id}: the trimap has no {name} voxels at {parameters.spacing_mm:g} mm: nothing to solve"
            )
    placed = crop.grid
    values, channels, about = _channels(nodule, values, crop, parameters, notes)
    return replace(
        nodule,
        image=values,
        channels=channels,
        spacing=placed.spacing,
        origin=placed.origin,
        direction=np.array(placed.direction, dtype=float),
        readers=readers,
        trimap=trimap,
        true_membership=true_membership,
        true_calibrated=true_calibrated,
        metadata={
            **nodule.metadata,
            "scanner_spacing": [float(s) for s in grid.spacing],
            "crop_start": [int(n) for n in start],
            "crop_shape": [int(n) for n in stop - start],
            **about,
        },
        notes=notes,
    )


def _check_number_of_channels(nodule: Nodule, parameters: PrepareParameters) -> None:
    count, wanted = 1 + len(nodule.channels), len(parameters.channels) or 1
    if count == wanted:
        return
    files = nodule.metadata.get("image", "")
    named = f" ({', '.join(channel.name for channel in parameters.channels)})" if parameters.channels else ""
    raise InputError(
        f"{nodule.nodule_id}: {counted(count, 'image')} ({files}) in a build of {counted(wanted, 'channel')}{named}: "
        "give each case one image per channel, separated by ; in the table, and repeat --intensity-range once per image"
    )


def _channels(
    nodule: Nodule, first: np.ndarray, crop: Crop, parameters: PrepareParameters, notes: list[str]
) -> tuple[np.ndarray, list[Channel], dict[str, object]]:
    """The image that calibrates, the channels beside it, and what the metadata say of them; nothing of one channel."""
    if not parameters.channels:
        return first, [], {}
    about, *others = parameters.channels
    channels = [Channel(about.name, first, about.low, about.high)]
    spacings = {about.name: [float(s) for s in crop.spacing]}
    for setting, channel in zip(others, nodule.channels, strict=True):
        values = _on_crop(nodule.nodule_id, channel, crop, setting, notes)
        channels.append(Channel(setting.name, values, setting.low, setting.high))
        spacings[setting.name] = [float(s) for s in channel.spacing or crop.spacing]
    place = next(n for n, channel in enumerate(channels) if channel.name == parameters.calibrating)
    image = channels.pop(place)
    about_image = {"name": image.name, "intensity_range": [image.low, image.high]}
    return image.image, channels, {IMAGE_CHANNEL: about_image, "channel_spacings": spacings}


def _on_crop(nodule_id: str, channel: Channel, crop: Crop, setting: ChannelRange, notes: list[str]) -> np.ndarray:
    """A channel on a grid of its own, on the working grid; float32 (z, y, x).

    Linear, and in one step. What lies beyond the edge of the first image is the low end of the channel's range.
    ``notes`` receives one where the channel lies on another grid than the first image.

    Raises
    ------
    InputError
        The channel does not cover the part of the crop that the first image has.
    """
    where = f"{nodule_id}: channel {setting.name} ({channel.name})"
    if channel.image.ndim != 3:
        raise InputError(f"{where}: the image must be 3D, not {channel.image.ndim}D")
    own = own_grid(channel, where)
    if same_lattice(own, crop.scan):
        values = crop.resample(crop.cut(channel.image), fill=setting.low)
    else:
        missing = shortfall(own, crop.scanned_grid())
        if missing:
            raise InputError(
                f"{where}: does not cover the crop around the lesion, which reaches {missing}; give an image that "
                "covers it, or a smaller crop (--crop-px, --pad-slices)"
            )
        size = " x ".join(f"{s:.3g}" for s in own.spacing)
        notes.append(f"{setting.name}: voxels of {size} mm (z, y, x), resampled to the grid of the first image")
        values = resampled(channel.image, own, crop.grid)
        values[~crop.scanned] = setting.low
    if not np.isfinite(values).all():
        raise InputError(f"{where}: {np.count_nonzero(~np.isfinite(values))} voxels nearby are NaN or infinite")
    return values


def make_trimap(
    readers: Sequence[np.ndarray],
    spacing: Sequence[float],
    grow_out_mm: float = 2.0,
    grow_in_mm: float = 1.0,
    foreground: str = "intersection",
) -> np.ndarray:
    """Readers' masks to a trimap (paper, section 3, with the growth that its "we dilate the unknown region" asks for).

    Foreground is the readers' intersection (or majority), background the complement of their union, the rest unknown.
    Background within ``grow_out_mm`` of the union and foreground within ``grow_in_mm`` of what is not foreground become
    unknown too (Euclidean, between voxel centres). Where less than a tenth of the foreground would remain, its deepest
    tenth, one voxel at least, stays: by distance to its border, at one depth the voxels nearest its centre of mass,
    then by raster order. The edge of the grid is no border.

    Parameters
    ----------
    readers : one or more masks (z, y, x), non-zero inside
    spacing : (z, y, x) mm
    foreground : "intersection" or "majority" (more than half of the readers)

    Returns
    -------
    uint8 (z, y, x): 0 background, 128 unknown, 255 foreground

    Raises
    ------
    NoduleExcluded
        The readers share no voxel, or none has their majority.
    """
    if foreground not in FOREGROUND_RULES:
        raise InputError(f"foreground must be one of {', '.join(FOREGROUND_RULES)}, not {foreground!r}")
    if not readers:
        raise InputError("a trimap needs one reader's mask at least")
    votes = np.zeros(readers[0].shape, dtype=np.int32)
    for mask in readers:
        votes += mask != 0
    needed = len(readers) if foreground == "intersection" else len(readers) // 2 + 1
    if votes.max(initial=0) < needed:
        raise NoduleExcluded(
            "the readers share no voxel"
            if foreground == "intersection"
            else f"no voxel lies inside the masks of more than half of the {len(readers)} readers"
        )

    # Nothing changes further from the union than the growth: distances are measured in a box around it.
    union = votes > 0
    box = box_around(union, [math.ceil(grow_out_mm / s) + 1 for s in spacing])
    union, sure = union[box], votes[box] >= needed
    trimap = np.zeros(votes.shape, dtype=np.uint8)
    part = trimap[box]
    part[distance_transform_edt(~union, sampling=spacing) <= grow_out_mm] = UNKNOWN
    part[union] = UNKNOWN
    depth = distance_transform_edt(sure, sampling=spacing) if not sure.all() else np.full(sure.shape, np.inf)
    kept = sure & (depth > grow_in_mm)
    total = np.count_nonzero(sure)
    if 10 * np.count_nonzero(kept) < total:
        kept = _deepest(sure, depth, math.ceil(total / 10), spacing)
    part[kept] = FOREGROUND
    return trimap


def doubt_of_hu(image: np.ndarray) -> str:
    """A question where the values of a CT image (z, y, x) cannot be HU, as air and fat lie below 0; else empty.

    Stored values without their intercept (HU + 1024), 8-bit pictures and normalised images are found. What lies below
    air is the scanner's filling and says nothing.
    """
    values = image[image >= FIELD_OF_VIEW_FLOOR]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low < 0 and high - low >= LEAST_SPAN:
        return ""
    return (
        f"{DOUBT_OF_HU} The values of the image run from {low:g} to {high:g}, but those of air and fat are below 0 HU: "
        "subtract the offset (often 1024), or for an image that is no CT give --intensity-range LOW HIGH"
    )


def _deepest(sure: np.ndarray, depth: np.ndarray, count: int, spacing: Sequence[float]) -> np.ndarray:
    """The ``count`` deepest voxels of ``sure``."""
    place = np.argwhere(sure)
    mm = place * np.asarray(spacing)
    from_centre = np.linalg.norm(mm - mm.mean(axis=0), axis=1)
    # Rounded: the last bit must not decide between equal distances.
    order = np.lexsort((from_centre.round(6), -depth[sure].round(6)))[:count]
    kept = np.zeros_like(sure)
    kept[tuple(place[order].T)] = True
    return kept


def _checked(nodule: Nodule) -> tuple[np.ndarray, Grid]:
    name = nodule.nodule_id
    if nodule.image is None or nodule.spacing is None or nodule.origin is None or nodule.direction is None:
        raise InputError(f"{name}: image, spacing, origin and direction are needed")
    image = np.asarray(nodule.image)
    if image.ndim != 3:
        raise InputError(f"{name}: the image must be 3D, not {image.ndim}D")
    masks = [nodule.trimap] if nodule.trimap is not None else list(nodule.readers)
    if not masks:
        raise InputError(f"{name}: neither readers' masks nor a trimap")
    truths = [truth for truth in (nodule.true_membership, nodule.true_calibrated) if truth is not None]
    for shape in [mask.shape for mask in masks] + [truth.shape for truth in truths]:
        if shape != image.shape:
            raise InputError(f"{name}: a mask of {shape} voxels (z, y, x) on an image of {image.shape}")
    if not any((mask != 0).any() for mask in masks):
        raise InputError(f"{name}: every mask is empty")
    if nodule.trimap is not None:
        stray = ~np.isin(nodule.trimap, (BACKGROUND, UNKNOWN, FOREGROUND))
        if stray.any():
            some = ", ".join(str(v) for v in np.unique(nodule.trimap[stray])[:5])
            raise InputError(f"{name}: trimap values must be 0, 128 or 255; found {some}")
    return image, Grid(triple(image.shape), triple(nodule.spacing), triple(nodule.origin), np.asarray(nodule.direction))


def _crop_box(inside: np.ndarray, grid: Grid, parameters: PrepareParameters, notes: list[str]):
    """First voxel and the one after the last, on the scanner's grid; may lie outside it."""
    box = box_around(inside)
    low = np.array([part.start for part in box])
    high = np.array([part.stop for part in box])
    start, stop = low - parameters.pad_slices, high + parameters.pad_slices
    for axis in (1, 2):
        # The unknown region and a voxel of sure background on each side have to fit.
        margin = math.ceil((parameters.grow_out_mm + parameters.spacing_mm) / grid.spacing[axis]) + 1
        wanted = min(parameters.crop_px, math.ceil(parameters.crop_px * LARGEST_PIXEL_MM / grid.spacing[axis]))
        side = max(wanted, int(high[axis] - low[axis]) + 2 * margin)
        if side > parameters.crop_px:
            notes.append(
                f"crop widened to {side} px along {'zyx'[axis]}: {parameters.crop_px} px do not hold the nodule"
            )
        elif side < parameters.crop_px:
            notes.append(
                f"crop narrowed to {side} px along {'zyx'[axis]}: a pixel of {grid.spacing[axis]:g} mm counts as "
                f"{LARGEST_PIXEL_MM:g} mm of the {parameters.crop_px} px"
            )
        start[axis] = (low[axis] + high[axis] - side) // 2
        stop[axis] = start[axis] + side
    return start, stop


class Crop:
    """A box of the scanner's grid and the working grid that covers it.

    The working grid begins at the box's outer edge, half a scanner's voxel before its first centre. Only the voxels
    that the scan has are resampled, their outermost values running on to the scan's edge, half a voxel past the last
    centre; what lies further is filled, so that air never bleeds into the scan.
    """

    def __init__(self, grid: Grid, start: np.ndarray, stop: np.ndarray, spacing_mm: float) -> None:
        spacing = np.array(grid.spacing)
        # A voxel more on each side, where the scan has it: the box's outermost half voxels lie between the two.
        self.start = np.maximum(start - 1, 0)
        self.stop = np.minimum(stop + 1, grid.shape)
        self.scan, self.spacing = grid, grid.spacing
        shape = [max(1, round(float(n))) for n in (stop - start) * spacing / spacing_mm]
        # Working voxel i has its centre at this index of the scanner's grid, axis by axis.
        index = [s - 0.5 + (np.arange(n) + 0.5) * spacing_mm / h for s, n, h in zip(start, shape, spacing, strict=True)]
        first = np.array([i[0] for i in index])
        self.grid = Grid(triple(shape), (spacing_mm,) * 3, triple(grid.to_patient(first).tolist()), grid.direction)
        self.offset = (first - self.start) * spacing
        inside = [(i >= -0.5) & (i <= n - 0.5) for i, n in zip(index, grid.shape, strict=True)]
        self.scanned = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        sides = [
            f"{count} {'slices' if axis == 'z' else 'px'} {where} along {axis}"
            for axis, before, after in zip("zyx", -start, stop - np.array(grid.shape), strict=True)
            for where, count in (("before the first", before), ("after the last", after))
            if count > 0
        ]
        self.beyond = ", ".join(sides)

    def scanned_grid(self) -> Grid:
        """The part of the working grid that the scan has."""
        box = box_around(self.scanned)
        return self.grid.crop([part.start for part in box], [part.stop - part.start for part in box])

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The part of an array on the scanner's grid that lies in the box, float32."""
        box = tuple(slice(int(a), int(b)) for a, b in zip(self.start, self.stop, strict=True))
        return np.ascontiguousarray(array[box], dtype=np.float32)

    def resample(self, part: np.ndarray, fill: float) -> np.ndarray:
        """A part that ``cut`` gave, on the working grid; float32."""
        values = self._linear(part, (0, 0, 0), self.grid.shape)
        values[~self.scanned] = fill
        return values

    def resample_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the scanner's grid, linearly and cut at one half; uint8."""
        part = self.cut(mask)
        inside = np.zeros(self.grid.shape, dtype=np.uint8)
        if not part.any():
            return inside
        # A voxel further than one of the scanner's from the mask is zero: no need to resample there.
        index = [o / h + np.arange(n) * w / h for o, h, n, w in self._axes()]
        near = [np.flatnonzero((i > b.start - 1) & (i < b.stop)) for i, b in zip(index, box_around(part), strict=True)]
        if not all(len(n) for n in near):
            return inside
        first, size = [int(n[0]) for n in near], [len(n) for n in near]
        box = tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))
        inside[box] = (self._linear(part, first, size) >= 0.5) & self.scanned[box]
        return inside

    def _axes(self) -> Iterable[tuple[float, float, int, float]]:
        return zip(self.offset, self.spacing, self.grid.shape, self.grid.spacing, strict=True)

    def _linear(self, part: np.ndarray, first: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The box of the working grid that begins at voxel ``first``."""
        import SimpleITK as sitk  # see raymat.volume

        image = sitk.GetImageFromArray(part)
        image.SetSpacing([float(s) for s in self.spacing[::-1]])
        origin = self.offset + np.array(first) * self.grid.spacing
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize([int(n) for n in size[::-1]])
        resampler.SetOutputSpacing([float(s) for s in self.grid.spacing[::-1]])
        resampler.SetOutputOrigin([float(o) for o in origin[::-1]])
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.UseNearestNeighborExtrapolatorOn()
        # The caller's workers share the machine, and one thread gives the same bits everywhere.
        resampler.SetNumberOfThreads(1)
        return sitk.GetArrayFromImage(resampler.Execute(image))


def _resampled_trimap(crop: Crop, trimap_of_scan: np.ndarray) -> np.ndarray:
    """Foreground and background each linearly and cut at one half; unknown is what remains."""
    trimap = np.full(crop.grid.shape, UNKNOWN, dtype=np.uint8)
    trimap[crop.resample(crop.cut(trimap_of_scan == BACKGROUND), fill=1.0) > 0.5] = BACKGROUND
    trimap[crop.resample(crop.cut(trimap_of_scan == FOREGROUND), fill=0.0) > 0.5] = FOREGROUND
    return trimap
