"""How a nodule is looked at: its arrays on the patient's axes, slices through its centre, grey values and colours.

The patient's right is on the left of axial and coronal views, anterior is up in axial and left in sagittal ones, and
the head is up: arrays are turned by the nodule's direction before they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patheffects import withStroke
from scipy import ndimage

from raymat.arrays import box_around, triple
from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.errors import InputError
from raymat.nodule import Channel, Nodule, required

PLANES = ("axial", "coronal", "sagittal")
READERS_COLOURS = ("#00d5ff", "#ffd400", "#ff5cf4", "#5dff5d", "#ff9340", "#b79bff")
CT_RANGE = (-1000.0, 400.0)  # of intensities, by default
OUTSIDE = 0.13  # grey of what lies beyond the crop

# Redder means more lesion (paper, figure 1).
ALPHA_COLOURS = LinearSegmentedColormap.from_list("alpha", ["#fff3a0", "#ffc93c", "#ff8a1f", "#f4411e", "#c4000f"])
OPACITY = 0.8
FULL_FROM = 0.3  # alpha from which the overlay has its full opacity; it fades out below

HALO = [withStroke(linewidth=1.8, foreground="#000000c0")]  # keeps white writing legible on bright tissue


@dataclass(frozen=True)
class View:
    """A nodule's arrays turned to the patient's axes (z to the head, y to the back, x to the left) and where to cut.

    Attributes
    ----------
    spacing : (z, y, x) mm, turned
    centre : (z, y, x) voxel index of the three planes
    middle : (z, y, x) voxel index, fractional, of the middle of the field of view
    side : side of the field of view, mm
    oriented : whether the direction is known, so that sides can be named
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    centre: tuple[int, int, int]
    middle: tuple[float, float, float]
    side: float
    oriented: bool

    def turn(self, array: np.ndarray) -> np.ndarray:
        """The array (z, y, x) on the patient's axes; a view."""
        array = array.transpose(self.order)
        return array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def cut(self, array: np.ndarray, plane: int) -> np.ndarray:
        """The slice of a turned array through the centre, its first row at the top of the picture."""
        image = np.take(array, self.centre[plane], axis=plane)
        return image[::-1] if plane else image

    def extent(self, shape: tuple[int, ...], plane: int) -> tuple[float, float, float, float]:
        """left, right, bottom, top of a cut in mm from the middle of the field of view, up positive."""
        rows, columns = (axis for axis in range(3) if axis != plane)
        edges = {}
        for axis in (rows, columns):
            low = (-0.5 - self.middle[axis]) * self.spacing[axis]
            edges[axis] = low, low + shape[axis] * self.spacing[axis]
        low, high = edges[rows]
        # y grows to the back, which axial views show downwards; z grows to the head, upwards.
        bottom, top = (-high, -low) if plane == 0 else (low, high)
        return (*edges[columns], bottom, top)


def view_of(nodule: Nodule, margin_mm: float) -> View:
    """How to turn, crop and cut the nodule's arrays."""
    if nodule.image is None or nodule.spacing is None:
        words = f" ({nodule.outcome}: {nodule.reason})" if nodule.outcome and nodule.reason else ""
        raise InputError(f"{nodule.nodule_id}: there is no image to show{words}")
    order, flips = _orientation(nodule.direction)
    turned = View(order, flips, triple(nodule.spacing[a] for a in order), (0, 0, 0), (0.0,) * 3, 0.0, False)
    weight = turned.turn(_centre_of(nodule))
    region = turned.turn(_region_of(nodule))
    box = box_around(region)
    low, high = np.array([part.start for part in box]), np.array([part.stop - 1 for part in box])
    extents = np.multiply(region.shape, turned.spacing)
    # No wider than the crop itself: a margin that was never scanned shows nothing.
    side = float(min(((high - low + 1) * turned.spacing).max() + 2 * margin_mm, extents.max()))
    centre = [float(c) for c in ndimage.center_of_mass(weight)]
    nearest = [min(max(round(c), 0), n - 1) for c, n in zip(centre, weight.shape, strict=True)]
    middle = triple(((low + high) / 2).tolist())
    return View(order, flips, turned.spacing, triple(nearest), middle, side, nodule.direction is not None)


def _orientation(direction: np.ndarray | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which index axis runs nearest to each patient axis (z, y, x), and which of them must be turned round."""
    if direction is None:
        return (0, 1, 2), (False, False, False)
    direction = np.asarray(direction, float).reshape(3, 3)
    left = np.abs(direction)
    order = [0, 0, 0]
    for _ in range(3):
        patient, index = np.unravel_index(np.argmax(left), left.shape)
        order[patient] = int(index)
        left[patient, :] = -1
        left[:, index] = -1
    return triple(order), triple(bool(direction[patient, index] < 0) for patient, index in enumerate(order))


def _best(nodule: Nodule) -> np.ndarray | None:
    """The chosen matte; else the candidate of the highest score that has any alpha."""
    if nodule.alpha is not None:
        return nodule.alpha
    scored = [m for m in nodule.candidates if np.isfinite(m.alpha).all() and m.alpha.any()]
    if not scored:
        return None
    return max(scored, key=lambda m: m.score if np.isfinite(m.score) else -1.0).alpha


def _centre_of(nodule: Nodule) -> np.ndarray:
    """What the planes run through the centre of."""
    alpha = _best(nodule)
    if alpha is not None and alpha.any():
        return alpha
    return _region_of(nodule)


def _region_of(nodule: Nodule) -> np.ndarray:
    """Bool array, the voxels that the field of view is drawn around."""
    if nodule.trimap is not None and nodule.trimap.any():
        return nodule.trimap > 0
    readers = [mask > 0 for mask in nodule.readers if mask.any()]
    return np.logical_or.reduce(readers) if readers else np.ones(required(nodule.image, nodule, "image").shape, bool)


def shown_channels(nodule: Nodule) -> list[tuple[str, np.ndarray, HUWindow]]:
    """What is shown of a nodule's image: its channels by name, (z, y, x), each with its window.

    One channel is "image", in the lung window; of several those of CT's range have that, the others their own range.
    """
    if not nodule.channels:
        return [("image", required(nodule.image, nodule, "image"), LUNG_WINDOW)]
    return [(channel.name, channel.image, window_of_channel(channel)) for channel in nodule.all_channels]


def window_of_channel(channel: Channel) -> HUWindow:
    """The window that a channel is shown in at first."""
    if channel.intensity_range == CT_RANGE:
        return LUNG_WINDOW
    return HUWindow((channel.low + channel.high) / 2, channel.high - channel.low)


def grey_of(hu: np.ndarray, window: HUWindow = LUNG_WINDOW) -> np.ndarray:
    """RGB float32 (rows, columns, 3) of HU in a window; NaN is shown as air."""
    grey = np.nan_to_num(window.alpha(hu), nan=0.0)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.float32)


def overlay(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The grey picture under the matte's colours."""
    alpha = np.clip(np.nan_to_num(alpha), 0.0, 1.0)
    opacity = (OPACITY * np.minimum(alpha / FULL_FROM, 1.0))[..., None]
    return (picture * (1.0 - opacity) + ALPHA_COLOURS(alpha)[..., :3] * opacity).astype(np.float32)


def _resample(image: np.ndarray, extent: tuple[float, ...], side: float, px: int, outside: float) -> np.ndarray:
    """A cut drawn onto px x px pixels of a square field of view, linearly; ``outside`` beyond the crop."""
    left, right, bottom, top = extent
    at = ((np.arange(px) + 0.5) / px - 0.5) * side
    rows = (top + at) / (top - bottom) * image.shape[0] - 0.5
    columns = (at - left) / (right - left) * image.shape[1] - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(image.astype(np.float32), grid, order=1, mode="constant", cval=outside)


def panel(
    view: View,
    image: np.ndarray,
    plane: int,
    px: int,
    alpha: np.ndarray | None = None,
    window: HUWindow = LUNG_WINDOW,
) -> np.ndarray:
    """One plane of an image under a matte's colours, RGB floats (px, px, 3); arrays (z, y, x), not yet turned."""
    image = view.turn(image)
    extent = view.extent(image.shape, plane)
    grey = _resample(grey_of(view.cut(image, plane), window)[..., 0], extent, view.side, px, OUTSIDE)
    picture = np.repeat(grey[..., None], 3, axis=2)
    if alpha is None:
        return picture
    return overlay(picture, _resample(view.cut(view.turn(alpha), plane), extent, view.side, px, 0.0))


def draw_contour(axes: Axes, mask: np.ndarray, extent: tuple[float, ...], reader: int, width: float) -> None:
    """The mask's outline, half-way between voxels."""
    if not mask.any():
        return
    left, right, bottom, top = extent
    dy, dx = (bottom - top) / mask.shape[0], (right - left) / mask.shape[1]
    # One voxel of background all round closes outlines at the edge of the crop.
    padded = np.pad(mask.astype(np.float32), 1)
    x = left + (np.arange(padded.shape[1]) - 0.5) * dx
    y = top + (np.arange(padded.shape[0]) - 0.5) * dy
    colour = READERS_COLOURS[reader % len(READERS_COLOURS)]
    axes.contour(x, y, padded, [0.5], colors=[colour], linewidths=width)


def bar_length(side: float) -> int:
    """A round length of about a quarter of the field of view, mm."""
    return next((length for length in (50, 20, 10, 5, 2) if length <= 0.4 * side), 1)
