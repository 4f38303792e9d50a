"""The terms of quality: what can be said of a matte from its image, its trimap and its readers alone.

Every term is a number from 0 (bad) to 1 (good). Errors e, in units of alpha, of a share of the lesion or of mm^3,
become terms by `1 / (1 + (e / h)^2)`, h being the error at which a term has fallen to one half: flat where errors are
harmless, never negative, and falling for as long as they grow.

A term is a function to its error, under ``@term`` with all else that is to be said of it. Weights and h were found
together on phantoms, sound and spoiled, of one half of the patients, and rounded (docs/explanation/quality.md). The
sum of the weights sets where the scores lie: sound mattes at 0.4 to 0.95, spoiled ones below the floor of 0.33. The
order of the functions is that in which terms are multiplied, and part of the bits of a score.

What all mattes of one nodule and one kind share (its box, its noise, what it says of pure lesion and pure background)
is computed once, in a ``Scene``; the arrays of every function here are those of the scene's box, alpha in units of its
scale. A matte is judged against what its own alpha means: with lesion tissue of density F and background of density B a
voxel of intensity I has the membership `(I - B) / (F - B)` (Eq. 1), and the calibrated alpha of that times `q(F)`
(Eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from raymat.arrays import BACKGROUND, FOREGROUND, UNKNOWN, Box, box_around, triple
from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.methods import CALIBRATED, MEMBERSHIP

SHELL_MM = 3.0  # known background looked at around the lesion
PURE_MM = 2.0  # half width of the windows in which pure background counts as smooth
RIM_MM = 1.5  # unknown region this near to the foreground counts as the lesion's interior
SOFT_TISSUE = 30.0  # HU of solid lesion tissue without contrast medium
# Radius of a lesion (of the sphere of its non-background voxels) below which the scanner's blur leaves no voxel of it
# pure, and above which the densest part surely is.
BLURRED_MM, PLATEAU_MM = 4.5, 8.5
TISSUE_MM = 1.0  # half width of the windows in which the lesion's own tissue is looked for
LEAST_CONTRAST = 0.25  # of the contrast: where lesion and background differ less the image cannot distinguish them
LOCAL_MM = 1.0  # half width of the windows in which alpha should be a linear function of the image
FLAT = 0.02  # standard deviation, in units of the contrast, below which a window of the image explains nothing
LEAST_SCALE = 0.05  # of calibrated alpha: what is less dense is no lesion that could be measured by its own alpha
LEVELS = (0.25, 0.5)  # of the matte's median over the body: the levels whose islands and holes are looked for

VOLUME_TOLERANCE = 0.15  # share of a reader's volume that a matte may lie beyond the readers' range unpunished


@dataclass(frozen=True)
class Beside:
    """What the local terms need of a channel beside the image, as ``Scene`` has it of that.

    Attributes
    ----------
    image : float32 (z, y, x), in units of the channel's own contrast, outliers clipped
    sign : of that contrast
    mean, variance : for each of the two windows float32 (z, y, x), of the image
    """

    image: np.ndarray
    sign: float
    mean: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Scene:
    """A nodule as the scores of one kind see it: the box around its non-background region, and what its mattes share.

    Attributes
    ----------
    box : slices (z, y, x) of the nodule's grid
    scale : what alpha is divided by, so that errors are shares of the lesion's own alpha whatever its density: 1 for
        membership, `q(F)` of the body's median for calibrated mattes
    voxel_mm3 : volume of a voxel
    image : float32 (z, y, x), in the image's unit (HU), outliers clipped
    foreground, unknown : bool (z, y, x)
    body : bool (z, y, x), foreground; where the trimap has none, unknown
    contrast : pure lesion against background in the image's unit, negative for a dark lesion; 0 where either is missing
    expected : float32, alpha of the kind as the image's level alone would have it, at the voxels of ``measurable``
    measurable : bool (z, y, x), non-background voxels where the image can distinguish lesion from background
    expected_inside : float32, the same against lung alone, at the voxels of ``interior``
    interior : bool (z, y, x), foreground and its rim
    filling : share of the lesion's own density that three quarters of the foreground have; 1 without foreground
    windows : the two windows of the local terms, (z, y, x) voxels, odd
    mean, variance : for each of them float32 (z, y, x), of the image in units of the contrast
    inside, outside : flat indices of the ends of every face between a foreground and an unknown voxel
    step : image step over those faces, in units of the contrast; of several channels the largest
    beside : the channels beside the image that tell lesion from background
    readers_mean : float32 (z, y, x), alpha of the kind as the readers' mean mask would have it; None without readers
    readers_mm3 : the sums of such alphas for each reader; empty without readers
    """

    box: Box
    scale: float
    voxel_mm3: float
    image: np.ndarray
    foreground: np.ndarray
    unknown: np.ndarray
    body: np.ndarray
    contrast: float
    expected: np.ndarray
    measurable: np.ndarray
    expected_inside: np.ndarray
    interior: np.ndarray
    filling: float
    windows: tuple[tuple[int, int, int], tuple[int, int, int]]
    mean: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray, ...]
    inside: np.ndarray
    outside: np.ndarray
    step: np.ndarray
    readers_mean: np.ndarray | None
    readers_mm3: tuple[float, ...]
    beside: tuple[Beside, ...] = ()


def scenes(
    image: np.ndarray,
    trimap: np.ndarray,
    readers: Sequence[np.ndarray],
    spacing: Sequence[float],
    pure_lesion: float | None = SOFT_TISSUE,
    window: HUWindow = LUNG_WINDOW,
    channels: Sequence[np.ndarray] = (),
) -> dict[str, Scene]:
    """What the scores of a nodule's mattes share, for each kind.

    Parameters
    ----------
    image : float (z, y, x), HU (or any unit: the scores use contrasts alone)
    trimap : uint8 (z, y, x), 0 background, 128 unknown, 255 foreground
    readers : masks (z, y, x), 1 inside; may be empty
    spacing : (z, y, x) mm
    pure_lesion : what a small lesion's tissue would measure without the scanner's blur; None where nothing is known of
        it (no CT), then the lesion's own densest part stands for it
    window : of the calibrated mattes (Eq. 4), in the image's unit
    channels : float (z, y, x) each, the channels beside the image. Alpha may follow any of them: what one explains of a
        step, or of alpha within a window, counts as explained. All else goes by the image, which calibrates.

    Raises
    ------
    ValueError
        Shapes differ, or the trimap has nothing but background.
    """
    named = [("trimap", trimap), *((f"readers[{r}]", mask) for r, mask in enumerate(readers))]
    named += [(f"channels[{c}]", channel) for c, channel in enumerate(channels)]
    for name, array in named:
        if array.shape != image.shape:
            raise ValueError(f"{name} has shape {array.shape}, the image {image.shape}")
    spacing = tuple(float(s) for s in spacing)
    if not (trimap != BACKGROUND).any():
        raise ValueError("the trimap has nothing but background")
    box = box_around(trimap != BACKGROUND, [round(SHELL_MM / s) for s in spacing])
    part = trimap[box]
    foreground, unknown = part == FOREGROUND, part == UNKNOWN
    background = part == BACKGROUND
    body = foreground if foreground.any() else unknown
    image, lesion_mean, contrast = _in_contrast(image[box], body, background)

    known = _levels(image, foreground, unknown, body, (pure_lesion, lesion_mean, contrast), spacing)
    windows = _window(LOCAL_MM, spacing), (3, 3, 3)
    mean, variance = _moments(image, windows)
    inside, outside = _faces(foreground, unknown)
    flat = image.ravel()
    step = np.abs(flat[inside] - flat[outside])
    beside = []
    for channel in channels:
        values, _, found = _in_contrast(channel[box], body, background)
        if found:
            beside.append(Beside(values, float(np.sign(found)), *_moments(values, windows)))
            flat = values.ravel()
            step = np.maximum(step, np.abs(flat[inside] - flat[outside]))
    voxel_mm3 = float(np.prod(spacing))
    membership = Scene(
        box=box,
        scale=1.0,
        voxel_mm3=voxel_mm3,
        image=image,
        foreground=foreground,
        unknown=unknown,
        body=body,
        contrast=contrast,
        expected=known.share[known.measurable],
        measurable=known.measurable,
        expected_inside=known.share_inside[known.interior],
        interior=known.interior,
        filling=known.filling,
        windows=windows,
        mean=mean,
        variance=variance,
        inside=inside,
        outside=outside,
        step=step,
        beside=tuple(beside),
        readers_mean=np.asarray(np.mean([mask[box] for mask in readers], axis=0, dtype=np.float32))
        if readers
        else None,
        readers_mm3=tuple(float(np.count_nonzero(mask)) * voxel_mm3 for mask in readers),
    )
    pure = window.alpha(known.lesion * abs(contrast) + lesion_mean).astype(np.float32)
    scale = max(float(np.median(pure[body])), LEAST_SCALE)
    pure /= np.float32(scale)
    calibrated = replace(
        membership,
        scale=scale,
        expected=membership.expected * pure[known.measurable],
        expected_inside=membership.expected_inside * pure[known.interior],
        readers_mean=None if membership.readers_mean is None else membership.readers_mean * pure,
        readers_mm3=tuple(float(pure[mask[box] != 0].sum(dtype=np.float64)) * voxel_mm3 for mask in readers),
    )
    return {MEMBERSHIP: membership, CALIBRATED: calibrated}


@dataclass(frozen=True)
class Term:
    """A quality term; to call it with a matte in units of ``Scene.scale`` and its scene gives the value, 0 to 1 (good).

    Attributes
    ----------
    name : that of its function
    error : of a matte (z, y, x) in a scene, 0 or more; no number where nothing can be said for the matte
    weight : the power that the term enters the score with
    half : the error at which the term is one half
    words : what is said where the term is low
    readers : whether it needs readers' masks; without them the term is absent
    """

    name: str
    error: Callable[[np.ndarray, Scene], float]
    weight: float
    half: float
    words: str
    readers: bool

    def __call__(self, alpha: np.ndarray, scene: Scene) -> float:
        """`1 / (1 + (error / half)^2)`; 0 for an error that is no number.

        Raises
        ------
        ValueError
            The term needs readers, and the nodule has none.
        """
        if self.readers and scene.readers_mean is None:
            raise ValueError(f"{self.name} needs readers' masks")
        error = self.error(alpha, scene)
        return float(1.0 / (1.0 + (error / self.half) ** 2)) if np.isfinite(error) else 0.0


TERMS: dict[str, Term] = {}
# What is no function of a matte alone: its weight, and what is said of it.
CONVERGED, CONVERGED_WEIGHT = "converged", 0.05
FACTS = {CONVERGED: "solver did not converge", "finite": "not a number", "lesion": "no lesion at all"}
NOTHING = float("nan")  # the error of a matte for which nothing can be said


def term(
    weight: float, half: float, words: str, readers: bool = False
) -> Callable[[Callable[[np.ndarray, Scene], float]], Term]:
    """A decorator that makes a quality term of a function to its error; see ``Term``."""

    def made(error: Callable[[np.ndarray, Scene], float]) -> Term:
        TERMS[error.__name__] = Term(error.__name__, error, weight, half, words, readers)
        return TERMS[error.__name__]

    return made


@term(weight=0.28, half=0.6, words="does not explain the image")
def explained(alpha: np.ndarray, scene: Scene) -> float:
    """How well `I = m F + (1 - m) B` (paper, Eq. 1) explains the image with F and B as they are known.

    B is the background's smooth mean near by. F is the level of the densest body near by where the lesion is large
    enough to have a plateau, and that of soft tissue, if denser, where it is so small that blur leaves none of it pure.
    `e` is the root mean square, over the non-background voxels where F and B differ, of alpha less
    `(I - B) / (F - B)`, for a calibrated matte less that times `q(F)`, all averaged over 3 x 3 x 3 voxels against
    noise. An inverted matte, or another nodule's, fails here.
    """
    return _distance(alpha, scene, scene.measurable, scene.expected)


@term(weight=0.02, half=0.05, words="interior does not have the alpha of its density")
def interior(alpha: np.ndarray, scene: Scene) -> float:
    """Whether the interior has the alpha of its density (paper, section 4.2: the foreground need not be pure lesion).

    As ``explained``, over the foreground and its rim alone and with B the level of the background's emptier quarter:
    inside a lesion it is lung that lesion tissue took the place of, even beside a chest wall.
    """
    return _distance(alpha, scene, scene.interior, scene.expected_inside)


@term(weight=0.5, half=0.001, words="reaches into the known background")
def known(alpha: np.ndarray, scene: Scene) -> float:
    """Whether the matte keeps out of the known background: `e` is the share of its alpha that lies there.

    Every solver leaves it at 0; a matte of another trimap or another nodule has some.
    """
    total = float(alpha.sum(dtype=np.float64))
    inside = float(alpha[scene.foreground | scene.unknown].sum(dtype=np.float64))
    return (total - inside) / total if total else NOTHING


@term(weight=0.16, half=0.6, words="foreground of the trimap is not lesion")
def foreground(alpha: np.ndarray, scene: Scene) -> float:
    """Whether the known foreground is lesion.

    `e` is one less the lower quartile, over the foreground, of the image's level: 0 for the background's emptier
    quarter, 1 for the foreground's own densest tenth. One number for all mattes of a nodule: where the trimap has
    slipped off the lesion none is any good.
    """
    return 1.0 - scene.filling


@term(weight=0.04, half=0.25, words="does not follow the image's edges")
def local_fit(alpha: np.ndarray, scene: Scene) -> float:
    """Whether alpha is linear in the image in every small window, as Eq. 1 with locally constant F and B says.

    Least squares of alpha on I in a window leaves `var(alpha) - cov(alpha, I)^2 / var(I)`, all of `var(alpha)` where
    alpha falls as the lesion's contrast rises. `e^2` is the mean of that over the unknown region. This is what the
    matting Laplacian of closed-form matting measures (A. Levin et al., "A closed-form solution to natural image
    matting", IEEE TPAMI 30(2), 2008), here as a number for any method's matte.
    """
    return _unexplained(alpha, scene, 0)


@term(weight=0.05, half=0.38, words="interior not continuous with the edge")
def continuity(alpha: np.ndarray, scene: Scene) -> float:
    """Whether the interior continues at the foreground's edge (paper, figure 6: "not numerically continuous").

    Over the faces between foreground voxels p and unknown voxels q, `e` is the mean of `|alpha_p - alpha_q|` beyond the
    image's own step `|I_p - I_q| / contrast`. 1 where the trimap has no such face.
    """
    if not scene.inside.size:
        return 0.0
    flat = alpha.ravel()
    jump = np.abs(flat[scene.inside] - flat[scene.outside])
    return float(np.mean(np.maximum(jump - scene.step, 0.0), dtype=np.float64))


@term(weight=0.15, half=0.55, words="stray islands")
def islands(alpha: np.ndarray, scene: Scene) -> float:
    """No lesion apart from the lesion.

    `e` is the larger volume in mm^3, over ``LEVELS``, of the alpha at or above a level that lies in components
    (26-connected) without a voxel of the body. The eye sees an island by its size, however large the lesion beside it.
    """
    worst, whole = 0.0, float(np.median(alpha[scene.body]))
    if not whole:
        return NOTHING
    for level in LEVELS:
        reached = alpha >= level * whole
        labels, n = ndimage.label(reached, np.ones((3, 3, 3)))
        main = np.zeros(n + 1, bool)
        main[labels[scene.body]] = True
        if main[1:].all():
            continue
        mass = np.bincount(labels[reached], alpha[reached], n + 1)
        worst = max(worst, float(mass[~main].sum()) * scene.voxel_mm3)
    return worst


@term(weight=0.28, half=0.0015, words="holes inside")
def holes(alpha: np.ndarray, scene: Scene) -> float:
    """No hole closed in by lesion: `e` is the larger, over ``LEVELS``, of the alpha missing below a level in components
    (6-connected) that do not reach the known background, as a share of all alpha."""
    worst, total, whole = 0.0, float(alpha.sum(dtype=np.float64)), float(np.median(alpha[scene.body]))
    if not whole:
        return NOTHING
    outside = ~(scene.foreground | scene.unknown)
    for level in LEVELS:
        below = alpha < level * whole
        labels, n = ndimage.label(below)
        reached = np.zeros(n + 1, bool)
        reached[labels[outside]] = True
        if reached[1:].all():
            continue
        missing = np.bincount(labels[below], level * whole - alpha[below], n + 1)
        worst = max(worst, float(missing[~reached].sum() / total))
    return worst


@term(weight=0.15, half=0.15, words="noisy unknown band")
def noise(alpha: np.ndarray, scene: Scene) -> float:
    """Smoothness of the unknown band: as ``local_fit`` in the smallest window, 3 x 3 x 3 voxels, where what the image
    does not explain of alpha is roughness."""
    return _unexplained(alpha, scene, 1)


@term(weight=1.1, half=0.048, words="steps that the image does not have")
def steps(alpha: np.ndarray, scene: Scene) -> float:
    """No step from voxel to voxel that the image does not have.

    Over the faces between unknown voxels p and q, `e` is the root mean square of `|alpha_p - alpha_q|` beyond the
    image's own step `|I_p - I_q| / contrast`. Blocks and hard edges fail here.
    """
    squares, faces = 0.0, 0
    for axis in range(alpha.ndim):
        low, high = _neighbours(axis, alpha.ndim)
        both = scene.unknown[low] & scene.unknown[high]
        step = np.abs(scene.image[high][both] - scene.image[low][both])
        for channel in scene.beside:
            step = np.maximum(step, np.abs(channel.image[high][both] - channel.image[low][both]))
        jump = np.abs(alpha[high][both] - alpha[low][both]) - step
        squares += float(np.sum(np.maximum(jump, 0.0) ** 2, dtype=np.float64))
        faces += jump.size
    return (squares / faces) ** 0.5 if faces else 0.0


@term(weight=0.28, half=0.19, words="disagrees with the readers", readers=True)
def overlap(alpha: np.ndarray, scene: Scene) -> float:
    """Agreement with the readers' mean mask m: `e = 1 - 2 sum(alpha m) / sum(alpha^2 + m^2)`, 1 less the soft Dice.

    For a calibrated matte m is the mean mask times `q(F)`, as is every reader's mask in ``volume``.
    """
    assert scene.readers_mean is not None
    m = scene.readers_mean
    total = float(np.vdot(alpha, alpha)) + float(np.vdot(m, m))
    return 1.0 - 2.0 * float(np.vdot(alpha, m)) / total if total else NOTHING


@term(weight=0.3, half=0.7, words="volume outside the readers' range", readers=True)
def volume(alpha: np.ndarray, scene: Scene) -> float:
    """Whether the matte's volume (the sum of alpha) lies inside the readers' range: `e` is how far it lies beyond the
    smallest or largest reader's volume and ``VOLUME_TOLERANCE`` on top, as the logarithm of the ratio."""
    mm3 = float(alpha.sum(dtype=np.float64)) * scene.voxel_mm3
    low, high = min(scene.readers_mm3) * (1.0 - VOLUME_TOLERANCE), max(scene.readers_mm3) * (1.0 + VOLUME_TOLERANCE)
    if not mm3 or not low:
        return NOTHING
    return max(np.log(low / mm3), np.log(mm3 / high), 0.0)


def _in_contrast(image: np.ndarray, body: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, float, float]:
    """An image (z, y, x) in units of its contrast and about the lesion's mean, that mean, and the contrast."""
    # Air outside the field of view and metal would count for more than the lesion in every square.
    image = image.astype(np.float32)
    image = np.clip(image, *np.percentile(image, (0.5, 99.5)))
    contrast = _contrast(image, body, background)
    # In units of the contrast and about the lesion, so that float32 keeps the small variances.
    lesion_mean = float(image[body].mean(dtype=np.float64))
    return (image - np.float32(lesion_mean)) / np.float32(abs(contrast) or 1.0), lesion_mean, contrast


def _moments(image: np.ndarray, windows: Sequence[Sequence[int]]) -> tuple[tuple[np.ndarray, ...], ...]:
    """Mean and variance of an image (z, y, x) in each of the windows."""
    mean = tuple(ndimage.uniform_filter(image, window) for window in windows)
    square = image * image
    variance = tuple(
        np.maximum(ndimage.uniform_filter(square, window) - m * m, 0.0) for window, m in zip(windows, mean, strict=True)
    )
    return mean, variance


def _window(half_mm: float, spacing: Sequence[float]) -> tuple[int, int, int]:
    """The odd window that reaches ``half_mm``, at least one voxel, to every side."""
    return triple(2 * max(1, round(half_mm / s)) + 1 for s in spacing)


def _contrast(image: np.ndarray, body: np.ndarray, background: np.ndarray) -> float:
    """Root mean square of the background about the lesion's mean, with the sign of their difference.

    Large beside lung even where most of the background is chest wall, whose mean would be the lesion's own.
    """
    if not background.any():
        return 0.0
    lesion = float(image[body].mean(dtype=np.float64))
    difference = lesion - image[background].astype(np.float64)
    return float(np.sqrt(np.mean(difference**2)) * (1.0 if difference.mean() >= 0 else -1.0))


@dataclass(frozen=True)
class _Levels:
    """What the image says of pure lesion and pure background; (z, y, x), levels in units of the contrast.

    Attributes
    ----------
    lesion : level of the lesion's own tissue at every voxel
    share, share_inside : membership by the level alone, with B the background near by, or lung
    measurable, interior : where either can be believed
    filling : ``Scene.filling``
    """

    lesion: np.ndarray
    share: np.ndarray
    share_inside: np.ndarray
    measurable: np.ndarray
    interior: np.ndarray
    filling: float


def _levels(
    image: np.ndarray,
    foreground: np.ndarray,
    unknown: np.ndarray,
    body: np.ndarray,
    levels: tuple[float | None, float, float],
    spacing: Sequence[float],
) -> _Levels:
    """The levels of a nodule's image; ``levels``: of pure lesion, of the lesion's mean, and the contrast."""
    pure_lesion, lesion_mean, contrast = levels
    region = foreground | unknown
    background = ~region
    rim = ndimage.maximum_filter(foreground, _window(RIM_MM, spacing)) & unknown
    interior = foreground | rim if foreground.any() else unknown
    if not contrast or not background.any():
        nowhere, nothing = np.zeros_like(region), np.zeros(region.shape, np.float32)
        return _Levels(nothing, nothing, nothing, nowhere, nowhere, 1.0)
    sign = np.float32(np.sign(contrast))
    smooth = sign * ndimage.uniform_filter(image, 3)
    # From here on the lesion is the brighter side, 0 its mean, 1 the contrast.
    densest = float(np.percentile(smooth[body], 90))
    lesion = _lesion_level(np.minimum(smooth, np.float32(densest)), body, densest, spacing)
    if pure_lesion is not None:
        radius = (0.75 / np.pi * np.count_nonzero(region) * float(np.prod(spacing))) ** (1.0 / 3.0)
        plateau = float(np.clip((radius - BLURRED_MM) / (PLATEAU_MM - BLURRED_MM), 0.0, 1.0))
        tissue = float(sign) * (pure_lesion - lesion_mean) / abs(contrast)
        lesion = plateau * lesion + (1.0 - plateau) * np.maximum(lesion, np.float32(tissue))

    weight = background.astype(np.float32)
    level = np.float32(np.median(sign * image[background]))
    window = _window(PURE_MM, spacing)
    share = ndimage.uniform_filter(weight, window)
    # Where a window holds almost no background that of the whole side takes its place.
    near = ndimage.uniform_filter(weight * (sign * image - level), window) / (share + np.float32(0.02)) + level
    measurable = region & (lesion - near >= LEAST_CONTRAST)
    empty = float(np.percentile(sign * image[background], 25))
    filling = 1.0
    if foreground.any():
        quarter = float(np.percentile(smooth[foreground], 25))
        filling = (quarter - empty) / max(densest - empty, LEAST_CONTRAST)
    least = np.float32(LEAST_CONTRAST)
    return _Levels(
        lesion=sign * lesion,
        share=np.clip((smooth - near) / np.maximum(lesion - near, least), 0.0, 1.0).astype(np.float32),
        share_inside=np.clip((smooth - empty) / np.maximum(lesion - empty, least), 0.0, 1.0).astype(np.float32),
        measurable=measurable,
        interior=interior,
        filling=float(np.clip(filling, 0.0, 1.0)),
    )


def _lesion_level(smooth: np.ndarray, body: np.ndarray, densest: float, spacing: Sequence[float]) -> np.ndarray:
    """The level of the lesion's tissue at every voxel: of the densest body near by, smoothed; (z, y, x).

    Ground glass beside a solid core so has a level of its own, and a voxel of the edge that of the body behind it.
    """
    near = ndimage.maximum_filter(np.where(body, smooth, -np.inf), _window(TISSUE_MM, spacing))
    there = np.isfinite(near)
    sigma = [TISSUE_MM / step for step in spacing]
    weight = ndimage.gaussian_filter(there.astype(np.float32), sigma, truncate=6)
    above = ndimage.gaussian_filter(np.where(there, near - densest, 0).astype(np.float32), sigma, truncate=6)
    return np.asarray(above / (weight + np.float32(1e-6)) + np.float32(densest))


def _distance(alpha: np.ndarray, scene: Scene, where: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of smoothed alpha less what is expected; 0 where nothing is, no number without contrast."""
    if not scene.contrast:
        return float("nan")
    if not expected.size:
        return 0.0
    return float(np.sqrt(np.mean((ndimage.uniform_filter(alpha, 3)[where] - expected) ** 2, dtype=np.float64)))


def _unexplained(alpha: np.ndarray, scene: Scene, which: int) -> float:
    """Root mean, over the unknown region, of what least squares on the image leaves of alpha's variance in windows."""
    if not scene.contrast or not scene.unknown.any():
        return 0.0 if scene.contrast else float("inf")
    window, at = scene.windows[which], scene.unknown
    mean = ndimage.uniform_filter(alpha, window)[at]
    variance = np.maximum(ndimage.uniform_filter(alpha * alpha, window)[at] - mean**2, 0.0)

    def fitted(image: np.ndarray, sign: float, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
        covariance = ndimage.uniform_filter(alpha * image, window)[at] - mean * means[at]
        covariance = np.maximum(covariance * np.float32(sign), 0.0)
        return np.asarray(covariance**2 / np.maximum(variances[at], FLAT**2))

    fit = fitted(scene.image, np.sign(scene.contrast), scene.mean[which], scene.variance[which])
    for channel in scene.beside:
        fit = np.maximum(fit, fitted(channel.image, channel.sign, channel.mean[which], channel.variance[which]))
    return float(np.sqrt(np.mean(variance - np.minimum(fit, variance), dtype=np.float64)))


def _faces(foreground: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of both ends of every face between a foreground and an unknown voxel."""
    index = np.arange(foreground.size, dtype=np.int32).reshape(foreground.shape)
    inside, outside = [], []
    for axis in range(foreground.ndim):
        low, high = _neighbours(axis, foreground.ndim)
        for p, q in ((low, high), (high, low)):
            face = foreground[p] & unknown[q]
            inside.append(index[p][face])
            outside.append(index[q][face])
    return np.concatenate(inside), np.concatenate(outside)


def _neighbours(axis: int, ndim: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the lower and the upper voxel of every pair along an axis."""
    low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(ndim))
    high = tuple(slice(1, None) if a == axis else slice(None) for a in range(ndim))
    return low, high
