"""The columns of a table of measures: name, type, unit and meaning.

The standard library alone: the site reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

NUMBER, COUNT, TEXT, NUMBERS, TEXTS = "number", "count", "text", "numbers", "texts"
IBSI = "IBSI {}; every voxel counts as much as its membership"


@dataclass(frozen=True)
class Measure:
    """A column.

    Attributes
    ----------
    unit : as in UCUM ("mm", "mm3", "mg", "HU"); "1" for a ratio; empty for texts
    meaning : one sentence
    type : "number", "count", "text"; "numbers" and "texts" for lists, which CSV has in one cell, separated by ";"
    """

    unit: str
    meaning: str
    type: str = NUMBER


# In the order of the table.
MEASURES: dict[str, Measure] = {
    "nodule_id": Measure("", "id of the nodule in its dataset", TEXT),
    "patient_id": Measure("", "id of the patient", TEXT),
    "matte": Measure("", "method of the membership matte that is measured", TEXT),
    "calibrated_matte": Measure("", "method of the calibrated matte that density is read from", TEXT),
    # Size
    "volume_mm3": Measure("mm3", "sum of membership, times the volume of a voxel"),
    "volume_estimate_mm3": Measure(
        "mm3", "estimate of the volume from the sum of membership and, from three readers on, their mean volume"
    ),
    "volume_low_mm3": Measure("mm3", "lower end of the estimate's 90 % interval, which phantoms calibrated"),
    "volume_high_mm3": Measure("mm3", "upper end of that interval"),
    "equivalent_diameter_mm": Measure("mm", "diameter of the ball of that volume"),
    "longest_diameter_mm": Measure(
        "mm", "longest diameter in an axial slice of the outline where membership is 0.5 (as RECIST 1.1 measures)"
    ),
    "perpendicular_diameter_mm": Measure(
        "mm", "longest chord of the same outline at a right angle to the longest diameter"
    ),
    "mean_diameter_mm": Measure("mm", "mean of the two (as the Fleischner Society measures)"),
    "readers": Measure("1", "number of readers' masks", COUNT),
    "reader_volumes_mm3": Measure("mm3", "volume of each reader's mask", NUMBERS),
    "readers_mean_mm3": Measure("mm3", "mean of the readers' volumes"),
    "readers_sd_mm3": Measure("mm3", "their standard deviation (n - 1)"),
    "readers_min_mm3": Measure("mm3", "the smallest of them"),
    "readers_max_mm3": Measure("mm3", "the largest of them"),
    "fleischner_2017_diameter": Measure(
        "", "class of size by the mean diameter, rounded to whole mm (MacMahon et al., Radiology 2017;284:228)", TEXT
    ),
    "fleischner_2017_volume": Measure("", "class of size by volume, of the same guideline", TEXT),
    "lung_rads_2022_diameter": Measure(
        "",
        "between which size thresholds of Lung-RADS v2022 (American College of Radiology) the mean diameter lies",
        TEXT,
    ),
    "lung_rads_2022_volume": Measure("", "the same by volume", TEXT),
    # Density
    "mass_mg": Measure("mg", "sum of membership times density (HU + 1000) / 1000 g/cm3, times the volume of a voxel"),
    "tissue_mass_mg": Measure(
        "mg",
        "mass of the lesion's own tissue, by both mattes together: without the lung or vessel in border voxels; "
        "too low where tissue is denser than the window of the calibration (calcification)",
    ),
    "solid_volume_mm3": Measure("mm3", "volume of what is at least as dense as -300 HU, by both mattes together"),
    "ground_glass_volume_mm3": Measure("mm3", "volume of the rest"),
    "solid_share": Measure("1", "solid volume over the sum of both"),
    "solid_volume_hu_mm3": Measure("mm3", "sum of membership where the image is at least -300 HU"),
    "ground_glass_volume_hu_mm3": Measure("mm3", "sum of membership where the image is less dense"),
    "solid_longest_diameter_mm": Measure("mm", "longest axial diameter of the solid part by both mattes"),
    "consolidation_tumor_ratio": Measure("1", "longest axial diameter of the solid part over that of the nodule"),
    # Shape
    "mesh_volume_mm3": Measure("mm3", "volume inside the surface where membership is 0.5 (IBSI RNU0 on that surface)"),
    "surface_mm2": Measure("mm2", "area of that surface, by marching cubes (IBSI C0JK)"),
    "sphericity": Measure("1", "surface of the ball of the mesh volume over the surface (IBSI QCFX)"),
    "border_width_mm": Measure(
        "mm", "distance along the normal over which membership falls from 0.9 to 0.1, median over the surface"
    ),
    "border_width_spread_mm": Measure("mm", "interquartile range of that distance over the surface"),
    "border_measured": Measure("1", "share of the surface on which membership reaches both 0.9 and 0.1"),
    # Intensity
    "intensity_mean_hu": Measure("HU", IBSI.format("Q4LE")),
    "intensity_variance_hu2": Measure("HU2", IBSI.format("ECT3")),
    "intensity_skewness": Measure("1", IBSI.format("KE2A")),
    "intensity_excess_kurtosis": Measure("1", IBSI.format("IPH6")),
    "intensity_median_hu": Measure("HU", IBSI.format("Y12H")),
    "intensity_minimum_hu": Measure("HU", "IBSI 1GSF, of voxels with a membership of at least 0.5"),
    "intensity_p10_hu": Measure("HU", IBSI.format("QG58")),
    "intensity_p25_hu": Measure("HU", "25th percentile; every voxel counts as much as its membership"),
    "intensity_p75_hu": Measure("HU", "75th percentile; every voxel counts as much as its membership"),
    "intensity_p90_hu": Measure("HU", IBSI.format("8DWT")),
    "intensity_maximum_hu": Measure("HU", "IBSI 84IY, of voxels with a membership of at least 0.5"),
    "intensity_interquartile_range_hu": Measure("HU", IBSI.format("SALO")),
    "intensity_range_hu": Measure("HU", "IBSI 2OJQ, of voxels with a membership of at least 0.5"),
    "intensity_mean_absolute_deviation_hu": Measure("HU", IBSI.format("4FUA")),
    "intensity_robust_mean_absolute_deviation_hu": Measure("HU", IBSI.format("1128")),
    "intensity_median_absolute_deviation_hu": Measure("HU", IBSI.format("N72L")),
    "intensity_energy_hu2": Measure("HU2", IBSI.format("N8CA")),
    "intensity_root_mean_square_hu": Measure("HU", IBSI.format("5ZWQ")),
    "notes": Measure("", "what a user should know of this nodule and its measures", TEXTS),
}
