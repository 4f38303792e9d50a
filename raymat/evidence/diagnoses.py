"""The tables of ``raymat classify``: how much diagnosis each input carries, and what sets inputs apart.

The trials of one network and input differ in their seed (and, where asked for, their split). Of a nodule their
scores are averaged as ranks among the test nodules of each trial, so that trials of different scales weigh alike; what
is compared between inputs, by DeLong's test and by patients resampled, is this average on the same test nodules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import brier_score_loss

from raymat import metrics
from raymat.evidence.bootstrap import draws, interval
from raymat.evidence.delong import delong
from raymat.evidence.holm import holm
from raymat.evidence.inputs import CHOSEN, MASKS, ROW_OF
from raymat.evidence.reader_prediction import calibration_bins, calibration_error
from raymat.evidence.roc import areas, auroc_by_patient, counted_pairs, with_all_once
from raymat.evidence.size_baseline import size_scores
from raymat.words import markdown_table, plus_minus

SIZE = "size alone"
TRIAL = ["network", "input", "seed", "split"]
MEASURES = ("auroc", "matched")
ALL_NETWORKS = "all networks"


def trials_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its AUROC on the test nodules, with a 95 % interval over patients, and its calibration.

    Parameters
    ----------
    predictions : one row per trial and test nodule: ``network, input, seed, split, nodule_id, patient_id, label,
        probability`` (the network's), ``calibrated`` (by its validation nodules), ``diameter_mm``

    Returns
    -------
    pd.DataFrame
        ``network, input, seed, split, auroc, auroc_low, auroc_high``; ``brier, calibration_error`` of ``calibrated``
        and ``own_brier, own_calibration_error`` of ``probability``; ``nodules``.
    """
    lines = []
    for trial, part in predictions.groupby(TRIAL, sort=False):
        area = auroc_by_patient(part["label"], part["probability"], part["patient_id"])
        own = {f"own_{name}": value for name, value in _calibration(part["label"], part["probability"]).items()}
        lines.append(
            dict(zip(TRIAL, trial, strict=True))
            | {"auroc": area.value, "auroc_low": area.low, "auroc_high": area.high}
            | _calibration(part["label"], part["calibrated"])
            | own
            | {"nodules": len(part)}
        )
    return pd.DataFrame(lines)


def _calibration(labels: pd.Series, probabilities: pd.Series) -> dict[str, float]:
    bins = calibration_bins(probabilities.to_numpy(float), labels.to_numpy() == 1)
    return {"brier": brier_score_loss(labels, probabilities), "calibration_error": calibration_error(bins)}


def averaged(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores per network, input, split and test nodule: the mean rank over the trials on that split's test part.

    A nodule that is tested in several splits has a row in each. Ranks of two test parts are not comparable, so that
    what is computed of these rows counts pairs within a part alone.

    Returns
    -------
    pd.DataFrame
        ``network, input, split, nodule_id, score, patient_id, label, diameter_mm``
    """
    ranked = predictions.copy()
    by_trial = predictions.groupby(TRIAL)["probability"]
    ranked["score"] = by_trial.transform(lambda values: (rankdata(values) - 0.5) / len(values))
    keys = ["network", "input", "split", "nodule_id"]
    facts = {name: (name, "first") for name in ("patient_id", "label", "diameter_mm")}
    return ranked.groupby(keys, sort=False).agg(score=("score", "mean"), **facts).reset_index()


def mean_probabilities(predictions: pd.DataFrame) -> pd.DataFrame:
    """Per network, input and test nodule the mean ``calibrated`` over all its trials, and its ``label``."""
    keys = ["network", "input", "nodule_id"]
    means = predictions.groupby(keys, sort=False).agg(calibrated=("calibrated", "mean"), label=("label", "first"))
    return means.reset_index()


def summarise(predictions: pd.DataFrame, inputs: Sequence[str]) -> pd.DataFrame:
    """One row per network and input, inputs in the order given.

    Returns
    -------
    pd.DataFrame
        ``network, input, trials``; ``mean, spread`` of the AUROC over the trials; ``auroc`` of the averaged scores
        with ``auroc_low, auroc_high``; ``matched, matched_low, matched_high`` among size-matched nodules and ``pairs``,
        how many those are, both by pairs within a test part; ``brier, calibration_error`` of the mean calibrated
        probability.
    """
    trials, scores = trials_table(predictions), averaged(predictions)
    probabilities = dict(iter(mean_probabilities(predictions).groupby(["network", "input"])))
    lines = []
    for (network, name), part in scores.groupby(["network", "input"], sort=False):
        areas = trials[(trials["network"] == network) & (trials["input"] == name)]["auroc"]
        columns = part["label"], part["score"], part["patient_id"]
        whole = auroc_by_patient(*columns, parts=part["split"])
        like = auroc_by_patient(*columns, part["diameter_mm"], parts=part["split"])
        nodules = probabilities[network, name]
        lines.append(
            {"network": network, "input": name, "trials": len(areas)}
            | {"mean": areas.mean(), "spread": metrics.spread(areas)}
            | {"auroc": whole.value, "auroc_low": whole.low, "auroc_high": whole.high}
            | {"matched": like.value, "matched_low": like.low, "matched_high": like.high}
            | {"pairs": int(counted_pairs(part["label"], part["diameter_mm"], parts=part["split"]).sum())}
            | _calibration(nodules["label"], nodules["calibrated"])
            | {"nodules": len(nodules)}
        )
    table = pd.DataFrame(lines)
    order = {name: rank for rank, name in enumerate(inputs)}
    table["place"] = table["input"].map(order).fillna(len(order))
    return table.sort_values(["network", "place"], kind="stable").drop(columns="place").reset_index(drop=True)


def comparisons(predictions: pd.DataFrame) -> pd.DataFrame:
    """DeLong's test of every two inputs of each network on the test nodules that both saw, by pairs within a test part.

    Returns
    -------
    pd.DataFrame
        ``network, first, second, difference`` (AUROC of the first less the second), ``error, p``; ``holm``, corrected
        over all rows; ``holm_chosen``, over those that set the chosen matte against another, NaN elsewhere.
    """
    nodules, lines = averaged(predictions), []
    for network, part in nodules.groupby("network", sort=False):
        wide = part.pivot(index=["split", "nodule_id"], columns="input", values="score")
        labels = part.drop_duplicates("nodule_id").set_index("nodule_id")["label"]
        names = list(part["input"].unique())
        if CHOSEN in names:
            names = [CHOSEN, *(name for name in names if name != CHOSEN)]
        for first, second in combinations(names, 2):
            both = wide[[first, second]].dropna()
            parts, seen = (both.index.get_level_values(name) for name in ("split", "nodule_id"))
            try:
                compared = delong(labels[seen], both[first], both[second], parts, seen)
            except ValueError:
                continue  # too few nodules to compare
            lines.append(
                {"network": network, "first": first, "second": second, "difference": compared.difference}
                | {"error": compared.error, "p": compared.p}
            )
    columns = ["network", "first", "second", "difference", "error", "p"]
    table = pd.DataFrame(lines, columns=columns)
    table["holm"] = holm(table["p"])
    table["holm_chosen"] = np.nan
    with_chosen = table["first"] == CHOSEN
    table.loc[with_chosen, "holm_chosen"] = holm(table["p"][with_chosen])
    return table


def size_predictions(nodules: pd.DataFrame, parts: dict[int, dict[str, str]]) -> pd.DataFrame:
    """The size-only regression on the test nodules of each repeated split, in the form of a trial's predictions.

    Parameters
    ----------
    nodules : labelled ones: ``nodule_id, patient_id, label, volume_mm3, diameter_mm``
    parts : split to patient to "training", "validation" or "test"
    """
    predictions = []
    for split, of in parts.items():
        part = nodules["patient_id"].map(of)
        training, test = nodules[part == "training"], nodules[part == "test"].copy()
        sizes = [one[["volume_mm3", "diameter_mm"]].to_numpy(float) for one in (training, test)]
        test["probability"] = size_scores(sizes[0], training["label"].to_numpy(), sizes[1])
        test["calibrated"] = test["probability"]
        predictions.append(test.assign(network=SIZE, input=SIZE, seed=0, split=split))
    return pd.concat(predictions, ignore_index=True)


def kinds(predictions: pd.DataFrame) -> pd.DataFrame:
    """Does a matte carry more than a mask? Each network's AUROC by kind of input, and how far it is above the masks'.

    The AUROC of a kind is the mean over its inputs; the chosen matte is a kind of its own, as is the best one of either
    kind of alpha (``raymat.evidence.inputs.ROW_OF``). All are taken in the same resamples of the patients, so that a
    difference has an interval of its own.

    Returns
    -------
    pd.DataFrame
        ``network, kind, inputs``; ``auroc`` of the averaged scores and ``matched``, among size-matched nodules, each
        with ``_low, _high`` and, less that of the masks, ``_gain, _gain_low, _gain_high`` (NaN for the masks, or where
        there are none). Before several networks stand "all networks": their mean, of the inputs that all have.
    """
    networks = _resampled(averaged(predictions))
    first, *others = networks.values()
    shared = [name for name in first if all(name in by_input for by_input in others)]
    if others and shared:
        means = {name: np.mean([by_input[name] for by_input in networks.values()], axis=0) for name in shared}
        networks = {ALL_NETWORKS: means, **networks}
    return pd.DataFrame([line for network, by_input in networks.items() for line in _by_kind(network, by_input)])


def _resampled(nodules: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """Of each network and input the AUROC by ``MEASURES``, all nodules once and in resamples (2, 1 + resamples)."""
    names = np.unique(nodules["patient_id"])
    times = with_all_once(draws(names.size))
    networks: dict[str, dict[str, np.ndarray]] = {}
    for (network, name), part in nodules.groupby(["network", "input"], sort=False):
        weights = times[:, np.searchsorted(names, part["patient_id"])]
        networks.setdefault(str(network), {})[str(name)] = np.stack(
            [
                areas(part["label"], part["score"], weights, sizes, parts=part["split"])
                for sizes in (None, part["diameter_mm"])
            ]
        )
    return networks


def _by_kind(network: str, by_input: dict[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """The lines of ``kinds`` for one network."""
    rows = dict.fromkeys(ROW_OF.values())
    names_of_kind = {kind: [name for name in by_input if ROW_OF[name] == kind] for kind in rows}
    means = {
        kind: np.mean([by_input[name] for name in names], axis=0) for kind, names in names_of_kind.items() if names
    }
    for kind, mean in means.items():
        gain = mean - means[MASKS] if MASKS in means and kind != MASKS else np.full_like(mean, np.nan)
        line = {"network": network, "kind": kind, "inputs": len(names_of_kind[kind])}
        for row, measure in enumerate(MEASURES):
            for key, values in ((measure, mean[row]), (f"{measure}_gain", gain[row])):
                low, high = interval(values[1:])
                line |= {key: values[0], f"{key}_low": low, f"{key}_high": high}
        yield line


def kinds_as_markdown(table: pd.DataFrame) -> str:
    """``kinds`` as Markdown."""
    head = ("network", "inputs", "AUROC", "above the masks'", "among size-matched nodules", "above the masks'")
    lines = []
    for _, row in table.iterrows():
        cells = [row["network"], row["kind"]]
        for name, form in (("auroc", ".3f"), ("auroc_gain", "+.3f"), ("matched", ".3f"), ("matched_gain", "+.3f")):
            value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
            cells.append(f"{value:{form}} ({low:{form}} to {high:{form}})" if np.isfinite(value) else "")
        lines.append(cells)
    return markdown_table(head, lines)


def as_markdown(table: pd.DataFrame, size: pd.DataFrame) -> str:
    """``summarise`` of the trials, and of the size baseline, as Markdown."""
    head = ["network", "input", "AUROC, mean of trials (± spread)", "AUROC of their average"]
    head += ["among size-matched nodules", "Brier score", "calibration error"]
    lines = []
    for _, row in pd.concat([size, table]).iterrows():
        cells = [row["network"], row["input"], plus_minus(row["mean"], row["spread"], ".3f")]
        cells += [
            f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})" for name in ("auroc", "matched")
        ]
        lines.append([*cells, f"{row['brier']:.3f}", f"{row['calibration_error']:.3f}"])
    return markdown_table(head, lines)


def comparisons_as_markdown(table: pd.DataFrame) -> str:
    """The chosen matte against every other input, as Markdown."""
    lines = []
    for _, row in table[table["first"] == CHOSEN].iterrows():
        low, high = (row["difference"] + sign * 1.96 * row["error"] for sign in (-1, 1))
        difference = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append([row["network"], row["second"], difference, f"{row['p']:.3f}", f"{row['holm_chosen']:.3f}"])
    return markdown_table(("network", "chosen less", "difference of AUROC (95 %)", "p", "p, Holm"), lines)
