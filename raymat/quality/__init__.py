"""How good a matte is, seen from its image, trimap and readers; the best of a nodule's mattes, or why none will do."""

from raymat.quality.selection import (
    MatteQuality,
    QualityParameters,
    assess,
    choose,
    combine,
    explain,
    score_mattes,
)

__all__ = ["MatteQuality", "QualityParameters", "assess", "choose", "combine", "explain", "score_mattes"]
