"""The statistics against other implementations, published numbers and what they must do by definition."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from raymat.evidence import diagnoses
from raymat.evidence.delong import delong
from raymat.evidence.holm import holm
from raymat.evidence.platt import calibrated
from raymat.evidence.roc import areas, auroc_by_patient, counted_pairs
from raymat.evidence.size_baseline import size_scores
from tests.support.predictions import draw_predictions


def a_study(n: int = 80, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, labels + rng.normal(0, 1.0, n), labels + rng.normal(0, 1.6, n)


def test_delongs_areas_are_the_roc_areas_and_his_error_is_that_of_resampling():
    labels, first, second = a_study(300)
    found = delong(labels, first, second)
    assert found.first == pytest.approx(roc_auc_score(labels, first))
    assert found.second == pytest.approx(roc_auc_score(labels, second))
    rng, resampled = np.random.default_rng(1), []
    ones, zeros = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    # The area is the share of pairs in which the positive one has the higher score.
    higher = [score[ones][:, None] > score[zeros] for score in (first, second)]
    for _ in range(2000):
        rows = np.ix_(rng.integers(ones.size, size=ones.size), rng.integers(zeros.size, size=zeros.size))
        resampled.append(higher[0][rows].mean() - higher[1][rows].mean())
    assert found.error == pytest.approx(np.std(resampled), rel=0.1)


def test_delong_is_symmetric_and_finds_nothing_between_equals():
    labels, first, second = a_study()
    assert delong(labels, first, second).p == pytest.approx(delong(labels, second, first).p)
    same = delong(labels, first, 3 * first + 1)
    assert (same.difference, same.p) == (0.0, 1.0)
    with pytest.raises(ValueError, match="two cases of each class"):
        delong(np.array([1, 0, 0]), first[:3], second[:3])


def test_delongs_variance_is_that_of_his_structural_components():
    labels, first, second = a_study(50, seed=4)
    ones, zeros = labels == 1, labels == 0
    components = [(score[ones][:, None] > score[zeros]).astype(float) for score in (first, second)]
    v10, v01 = ([one.mean(axis=axis) for one in components] for axis in (1, 0))
    s = np.cov(v10) / ones.sum() + np.cov(v01) / zeros.sum()
    assert delong(labels, first, second).error == pytest.approx((s[0, 0] + s[1, 1] - 2 * s[0, 1]) ** 0.5)


def test_delongs_p_is_uniform_where_two_scores_are_as_good():
    rng = np.random.default_rng(7)
    p = []
    for _ in range(400):
        labels = np.repeat([0, 1], [40, 30])
        base = labels + rng.normal(0, 1, 70)
        p.append(delong(labels, base + rng.normal(0, 1, 70), base + rng.normal(0, 1, 70)).p)
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def in_parts(rng, strength: float, prevalences=(0.35, 0.5, 0.6, 0.75), n: int = 85) -> pd.DataFrame:
    """One trial on each of four test parts, every part of other nodules and with its own share of malignant ones."""
    found = []
    for split, prevalence in enumerate(prevalences):
        labels = (np.arange(n) < round(prevalence * n)).astype(int)
        scores = strength * labels + rng.normal(0, 1, n)
        rows = {"nodule_id": [f"{split}-{i}" for i in range(n)], "patient_id": [f"{split}-{i}" for i in range(n)]}
        rows |= {"label": labels, "probability": norm.cdf(scores), "calibrated": norm.cdf(scores)}
        found.append(pd.DataFrame(rows).assign(network="net", seed=split, split=split, diameter_mm=8.0))
    return pd.concat(found, ignore_index=True)


def test_test_parts_of_other_prevalence_do_not_bias_the_area_of_their_pooled_ranks():
    rng, true = np.random.default_rng(0), 0.91
    within, across = [], []
    for _ in range(200):
        rows = diagnoses.averaged(in_parts(rng, 2**0.5 * norm.ppf(true)).assign(input="mean"))
        once = np.ones((1, len(rows)))
        within.append(areas(rows["label"], rows["score"], once, parts=rows["split"])[0])
        across.append(areas(rows["label"], rows["score"], once)[0])
    assert np.mean(within) == pytest.approx(true, abs=0.003)
    # What counting the pairs of two parts costs, or the test would show nothing.
    assert np.mean(across) < true - 0.01


def test_what_orders_every_part_perfectly_is_perfect_in_every_table():
    rng = np.random.default_rng(0)
    found = pd.concat([in_parts(rng, 30.0).assign(input="mean"), in_parts(rng, 0.5).assign(input="chosen")])
    table = diagnoses.summarise(found, ("mean", "chosen")).set_index("input")
    assert table.loc["mean", ["auroc", "auroc_low", "matched"]].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["mean", "pairs"] == sum(round(p * 85) * (85 - round(p * 85)) for p in (0.35, 0.5, 0.6, 0.75))
    assert diagnoses.kinds(found).set_index("kind").loc["masks", "auroc"] == 1.0
    compared = diagnoses.comparisons(found).iloc[0]
    assert compared["difference"] == pytest.approx(table.loc["chosen", "auroc"] - 1)


def test_a_nodule_of_several_test_parts_is_one_case_of_delongs_test():
    """Doubling the parts doubles no evidence; where two scores are as good, p stays uniform."""
    labels, first, second = a_study(100)
    once = delong(labels, first, second)
    both, cases = np.tile(np.arange(100), 2), np.tile(np.arange(100), 2)
    twice = delong(labels[both], first[both], second[both], np.repeat([0, 1], 100), cases)
    assert (twice.difference, twice.error) == pytest.approx((once.difference, once.error))
    rng, p = np.random.default_rng(3), []
    for _ in range(300):
        cases = np.concatenate([rng.permutation(60)[:30] for _ in range(4)])
        base = (np.arange(60) % 2) + rng.normal(0, 1, 60)
        scores = [base[cases] + rng.normal(0, 1, 60)[cases] + rng.normal(0, 0.5, 120) for _ in range(2)]
        p.append(delong(cases % 2, *scores, np.repeat(range(4), 30), cases).p)
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.035)
    with pytest.raises(ValueError, match="a pair of them"):
        delong([1, 1, 0, 0], [1, 2, 3, 4], [4, 3, 2, 1], parts=[0, 0, 1, 1])


def test_holm_by_hand():
    # 0.01 x 4, then 0.02 x 3, then 0.03 x 2 and 0.04 raised to those before them.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    assert holm([]).size == 0


def test_the_area_by_patient_is_sklearns_and_wider_when_nodules_share_patients():
    labels, scores, _ = a_study(120)
    alone = auroc_by_patient(labels, scores, [f"p{n}" for n in range(120)])
    assert alone.value == pytest.approx(roc_auc_score(labels, scores))
    assert alone.low < alone.value < alone.high
    order = np.argsort(labels, kind="stable")
    shared = auroc_by_patient(labels[order], scores[order], [f"p{n // 10}" for n in range(120)])
    assert shared.value == pytest.approx(alone.value)


def test_size_says_little_among_size_matched_nodules():
    rng = np.random.default_rng(0)
    diameters = np.exp(rng.normal(2.3, 0.5, 400))
    labels = (diameters * np.exp(rng.normal(0, 0.3, 400)) > 11).astype(int)
    patients = [f"p{n}" for n in range(400)]
    whole = auroc_by_patient(labels, diameters, patients)
    like = auroc_by_patient(labels, diameters, patients, diameters)
    assert whole.value > 0.85
    # What is left is the size within a fifth.
    assert like.value < 0.65
    assert auroc_by_patient(labels, diameters, patients, diameters, ratio=1.02).value < 0.55
    assert 0 < counted_pairs(labels, diameters).sum() < labels.sum() * (1 - labels).sum()


def test_the_size_baseline_sees_the_labels_of_its_training_nodules_alone():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(5, 1, (200, 2)))
    labels = (sizes[:, 0] > np.exp(5)).astype(int)
    scores = size_scores(sizes[:150], labels[:150], sizes[150:])
    assert roc_auc_score(labels[150:], scores) > 0.95
    assert ((scores > 0) & (scores < 1)).all()


def test_the_validation_nodules_set_probabilities_right_and_leave_their_order():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    evidence = 2 * labels - 1 + rng.normal(0, 1, 4000)
    right = 1 / (1 + np.exp(-2 * evidence))
    # Too sure of itself, and biased.
    given = 1 / (1 + np.exp(-(3.5 * evidence + 2)))
    found = calibrated(given[:2000], labels[:2000], given[2000:])
    np.testing.assert_allclose(found, right[2000:], atol=0.03)
    assert (np.argsort(found) == np.argsort(evidence[2000:])).all()
    # Nodules that are classified without an error make nobody certain.
    few = calibrated(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]), np.array([0.0, 0.5, 1.0]))
    assert 0.0 < few[0] < few[1] < few[2] < 1.0


def test_the_tables_agree_with_the_trials_and_correct_for_all_comparisons():
    found = draw_predictions({"image": 0.2, "mean": 1.0, "chosen": 4.0})
    trials = diagnoses.trials_table(found)
    assert len(trials) == 9
    one = found[(found["input"] == "mean") & (found["seed"] == 1)]
    stands = trials[(trials["input"] == "mean") & (trials["seed"] == 1)]["auroc"].item()
    assert stands == pytest.approx(roc_auc_score(one["label"], one["probability"]))
    table = diagnoses.summarise(found, ("image", "mean", "chosen"))
    assert table["input"].to_list() == ["image", "mean", "chosen"]
    assert table["mean"][1] == pytest.approx(trials[trials["input"] == "mean"]["auroc"].mean())
    with_other = diagnoses.comparisons(draw_predictions({"membership": 1.0, "image": 0.2, "chosen": 4.0}))
    assert set(with_other[with_other["first"] == "chosen"]["second"]) == {"membership", "image"}
    compared = diagnoses.comparisons(found)
    assert len(compared) == 3
    assert (compared["holm"] >= compared["p"]).all()
    assert compared.set_index(["first", "second"]).loc[("chosen", "image"), "holm_chosen"] < 0.001
    assert compared["holm_chosen"].notna().sum() == 2
    own = found.assign(probability=found["probability"] ** 0.25)
    assert diagnoses.trials_table(own)["calibration_error"].equals(trials["calibration_error"])
    assert (diagnoses.trials_table(own)["own_calibration_error"] > trials["own_calibration_error"]).all()
    text = diagnoses.as_markdown(table, table.iloc[:1])
    assert text.count("\n") == 5


def test_kinds_are_compared_with_the_masks_in_the_same_resamples():
    strong = {"image": 0.2, "mean": 1.0, "union": 1.4, "cf": 1.2, "cf+": 1.2, "chosen": 4.0, "membership": 1.5}
    first = draw_predictions(strong)
    second = first[first["input"] != "cf"].assign(network="other")
    table = diagnoses.kinds(pd.concat([first, second])).set_index(["network", "kind"])
    single = diagnoses.summarise(first, tuple(strong)).set_index("input")
    masks = table.loc[("net", "masks")]
    assert masks["inputs"] == 2
    assert masks["auroc"] == pytest.approx(single.loc[["mean", "union"], "auroc"].mean())
    assert np.isnan(masks["auroc_gain"])
    chosen = table.loc[("net", "chosen")]
    assert chosen["auroc"] == pytest.approx(single.loc["chosen", "auroc"])
    assert chosen["auroc_gain"] == pytest.approx(chosen["auroc"] - masks["auroc"])
    # The best matte of the other kind is no part of it, and in no mean.
    assert table.loc[("net", "membership"), "auroc"] == pytest.approx(single.loc["membership", "auroc"])
    assert table.loc["net"].loc[["mattes", "mattes +", "chosen", "membership"], "inputs"].to_list() == [1] * 4
    assert 0 < chosen["auroc_gain_low"] < chosen["auroc_gain"] < chosen["auroc_gain_high"]
    # All networks together are compared by what all were given.
    assert "mattes" in table.loc["net"].index
    assert "mattes" not in table.loc["all networks"].index
    assert table.loc[("all networks", "chosen"), "auroc"] == pytest.approx(chosen["auroc"])
    text = diagnoses.kinds_as_markdown(table.reset_index())
    assert text.count("\n") == 1 + len(table)
    assert "nan" not in text


def test_kinds_that_are_equally_good_differ_by_an_interval_around_nothing():
    table = diagnoses.kinds(draw_predictions({"mean": 1.0, "cf": 1.0}, seeds=1, n=300)).set_index("kind")
    assert table.loc["mattes", "auroc_gain_low"] < 0 < table.loc["mattes", "auroc_gain_high"]
    without_masks = diagnoses.kinds(draw_predictions({"cf": 1.0}))
    assert np.isnan(without_masks["auroc_gain"].item())


def test_averaging_is_by_ranks_so_that_a_trial_of_large_scores_does_not_decide():
    found = draw_predictions({"mean": 1.0}, seeds=2)
    scaled = found.copy()
    scaled.loc[scaled["seed"] == 0, "probability"] **= 5
    pd.testing.assert_series_equal(diagnoses.averaged(found)["score"], diagnoses.averaged(scaled)["score"])
