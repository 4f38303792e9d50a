"""Facts of the scores: what is spoiled scores lower, what is hopeless is rejected, and nothing depends on chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.matting import METHODS
from raymat.methods import ALPHA_KINDS
from raymat.nodule import ACCEPTED, REJECTED, InputError, Matte, Nodule
from raymat.quality import MatteQuality, QualityParameters, assess, choose, combine, explain, score_mattes
from raymat.quality.scores import TERMS
from raymat.quality.selection import WEIGHTS
from tests.support.nodules import distances

SPACING = (0.5, 0.5, 0.5)
SHAPE = (48, 56, 60)
CENTRE = (23.0, 27.0, 30.0)


def ball(radius_mm: float, centre=CENTRE) -> np.ndarray:
    """Distance in mm below the surface of a ball, positive inside."""
    return radius_mm - distances(SHAPE, centre, SPACING)


@pytest.fixture(scope="module")
def sphere():
    """A solid ball of 9 mm radius in noisy lung: image, trimap, readers, true alpha."""
    rng = np.random.default_rng(5)
    alpha = ndimage.gaussian_filter((ball(9.0) > 0).astype(np.float32), 1.6)
    alpha = np.where(alpha < 1e-3, 0, alpha).astype(np.float32)
    texture = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 0.7)
    image = -860 + alpha * 890 + 20 * texture / texture.std()
    readers = [(ball(9.0 + step) > 0).astype(np.uint8) for step in (-0.5, -0.2, 0.2, 0.6)]
    trimap = np.full(SHAPE, 128, np.uint8)
    trimap[ball(9.0) > 1.7] = 255
    trimap[ball(9.0) < -2.7] = 0
    return image.astype(np.float32), trimap, readers, alpha * (trimap > 0)


def spoil(sphere) -> dict[str, np.ndarray]:
    _, trimap, _, alpha = sphere
    rng = np.random.default_rng(6)
    unknown = trimap == 128
    blocks = np.kron(alpha.reshape(12, 4, 14, 4, 15, 4).mean((1, 3, 5)), np.ones((4, 4, 4)))
    stray = (
        np.logical_or.reduce([ball(2.0, (23.0, 27.0 + y, 30.0 + x)) > 0 for y, x in ((0, 22), (0, -22), (22, 0))])
        & unknown
    )
    return {
        "inverted": np.where(unknown, 1 - alpha, alpha),
        "noisy": np.where(unknown, np.clip(alpha + rng.normal(0, 0.25, SHAPE), 0, 1), alpha),
        "blocky": np.where(unknown, blocks, alpha),
        "islands": np.where(stray & (ball(9.0) < -1.4), 1, alpha),
        "hole": np.where(ball(4.0) > 0, 0, alpha),
        "shifted": ndimage.shift(alpha, (0, 0, 6), order=1),
        "of another nodule": np.clip(ball(4.0, (20.0, 22.0, 26.0)), 0, 1),
        "the mean mask's hard edge": (ball(9.9) > 0).astype(np.float32),
    }


def score(sphere, mattes, readers=None, **changes) -> dict[str, MatteQuality]:
    image, trimap, own, _ = sphere
    readers = own if readers is None else readers
    mattes = {name: np.asarray(alpha, np.float32) for name, alpha in mattes.items()}
    return score_mattes(image, trimap, readers, mattes, {}, SPACING, QualityParameters(**changes))


def test_the_true_matte_is_accepted_and_beats_every_spoiled_one(sphere):
    qualities = score(sphere, {"true": sphere[3], **spoil(sphere)})
    floor = QualityParameters().floor
    assert qualities["true"].score > 2 * floor
    spoiled = {name: quality.score for name, quality in qualities.items() if name != "true"}
    assert max(spoiled.values()) < qualities["true"].score
    rejected = {name for name, value in spoiled.items() if value < floor}
    assert rejected >= {"inverted", "noisy", "blocky", "islands", "hole", "shifted", "of another nodule"}, spoiled


@pytest.mark.parametrize(
    ("fault", "term"),
    [
        ("inverted", "explained"),
        ("noisy", "noise"),
        ("blocky", "steps"),
        ("islands", "islands"),
        ("hole", "holes"),
        ("shifted", "known"),
        ("of another nodule", "volume"),
        ("the mean mask's hard edge", "steps"),
    ],
)
def test_each_fault_lowers_the_term_that_looks_for_it(sphere, fault, term):
    qualities = score(sphere, {"true": sphere[3], fault: spoil(sphere)[fault]})
    assert qualities[fault].terms[term] < qualities["true"].terms[term] - 0.2


def test_every_term_lies_between_0_and_1(sphere):
    for quality in score(sphere, {"true": sphere[3], **spoil(sphere)}).values():
        assert set(quality.terms) == set(WEIGHTS)
        assert all(0.0 <= value <= 1.0 for value in quality.terms.values())
        assert 0.0 <= quality.score <= 1.0


@pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_mirrored_nodule_has_the_same_scores(sphere, flip):
    image, trimap, readers, alpha = sphere
    lopsided = np.where((trimap == 128) & (np.arange(SHAPE[2]) > 35), alpha**0.7, alpha).astype(np.float32)
    here = score((image, trimap, readers, alpha), {"cf": lopsided})["cf"]
    mirrored = [np.flip(a, flip) for a in (image, trimap, lopsided)]
    there = score_mattes(
        mirrored[0], mirrored[1], [np.flip(r, flip) for r in readers], {"cf": mirrored[2]}, {}, SPACING
    )["cf"]
    assert there.score == pytest.approx(here.score, abs=1e-4)
    assert there.terms == pytest.approx(here.terms, abs=1e-4)


def test_a_matte_of_the_negative_image_scores_the_same(sphere):
    """A dark lesion in a bright organ is as good a lesion; nothing is known of its pure tissue."""
    image, trimap, readers, alpha = sphere
    bright = score((image, trimap, readers, alpha), {"cf": alpha}, pure_lesion=None)["cf"]
    dark = score((-image, trimap, readers, alpha), {"cf": alpha}, pure_lesion=None)["cf"]
    assert dark.terms == pytest.approx(bright.terms, abs=1e-3)


def test_a_trimap_beside_the_lesion_is_rejected_and_says_so(sphere):
    image, trimap, _, alpha = sphere
    beside = np.roll(trimap, 22, axis=2)
    quality = score_mattes(image, beside, [], {"cf": np.roll(alpha, 22, axis=2)}, {}, SPACING)["cf"]
    assert quality.score < QualityParameters().floor
    assert "foreground of the trimap is not lesion" in explain(quality.terms)


def test_without_readers_their_terms_are_absent_and_the_others_weigh_more(sphere):
    quality = score(sphere, {"true": sphere[3]}, readers=[])["true"]
    assert set(quality.terms) == set(WEIGHTS) - {"overlap", "volume"}
    assert quality.score > 2 * QualityParameters().floor
    parameters = QualityParameters(weights={"noise": 1.0, "volume": 1.0})
    assert combine({"noise": 0.5}, parameters) == pytest.approx(0.25)
    assert combine({"noise": 0.5, "volume": 0.5}, parameters) == pytest.approx(0.25)


def test_nothing_and_not_a_number_score_0(sphere):
    broken = sphere[3].copy()
    broken[tuple(int(c) for c in CENTRE)] = np.nan
    qualities = score(sphere, {"cf": broken, "lb": np.zeros(SHAPE), "if": sphere[3]})
    assert qualities["cf"].score == qualities["lb"].score == 0.0
    assert explain(qualities["cf"].terms) == ["not a number"]
    assert explain(qualities["lb"].terms) == ["no lesion at all"]
    assert choose(qualities)[0] == "if"


def test_a_solver_that_stopped_early_loses_to_the_same_matte_converged(sphere):
    image, trimap, readers, alpha = sphere
    qualities = score_mattes(image, trimap, readers, {"cf": alpha, "lb": alpha}, {"cf": False, "lb": True}, SPACING)
    assert choose(qualities) == ("lb", None)


def test_equal_scores_are_chosen_by_the_order_of_the_methods(sphere):
    qualities = score(sphere, dict.fromkeys(reversed(METHODS[:4]), sphere[3]))
    assert len({quality.score for quality in qualities.values()}) == 1
    assert choose(qualities) == ("cf", None)


@pytest.fixture(scope="module")
def ground_glass(sphere):
    """The ball with tissue of -590 HU: image, trimap, readers, true membership."""
    image, trimap, readers, alpha = sphere
    return image - alpha * 620, trimap, readers, alpha


def test_a_matte_is_judged_against_what_its_own_alpha_means(ground_glass):
    membership = ground_glass[3]
    calibrated = membership * LUNG_WINDOW.alpha(np.float32(-590))
    right = score(ground_glass, {"cf": membership, "cf+": calibrated})
    wrong = score(ground_glass, {"cf": calibrated, "cf+": membership})
    floor = QualityParameters().floor
    for method in ("cf", "cf+"):
        assert right[method].score > 1.5 * floor
        assert wrong[method].score < right[method].score - 0.1
        for term in ("explained", "overlap"):
            assert wrong[method].terms[term] < right[method].terms[term] - 0.1
    # Its own alpha as a share of the tissue's, the calibrated matte is as good as the other.
    assert right["cf+"].score == pytest.approx(right["cf"].score, abs=0.05)


def test_the_window_of_the_calibrated_mattes_is_the_one_they_are_judged_by(ground_glass):
    window = HUWindow(-300, 1200)
    calibrated = ground_glass[3] * window.alpha(np.float32(-590))
    own = score(ground_glass, {"cf+": calibrated}, window=(window.level, window.width))["cf+"]
    other = score(ground_glass, {"cf+": calibrated})["cf+"]
    assert own.terms["explained"] > other.terms["explained"] + 0.1


@pytest.mark.parametrize("fault", ["inverted", "noisy", "blocky", "islands", "hole", "shifted", "of another nodule"])
def test_spoiled_ground_glass_is_rejected_for_its_own_alpha_too(ground_glass, fault):
    density = LUNG_WINDOW.alpha(np.float32(-590))
    spoiled = spoil(ground_glass)[fault] * density
    found = score(ground_glass, {"cf+": ground_glass[3] * density, f"{fault}+": spoiled})
    assert found[f"{fault}+"].score < QualityParameters().floor < found["cf+"].score


def test_only_candidates_of_the_kind_are_chosen():
    qualities = {"cf": MatteQuality({}, 0.9), "if": MatteQuality({}, 0.95), "lb+": MatteQuality({}, 0.6)}
    of = {kind: choose(qualities, QualityParameters(kind=kind))[0] for kind in (None, *ALPHA_KINDS)}
    assert of == {None: "lb+", "calibrated": "lb+", "membership": "if", "any": "if"}
    reason = choose({"cf": MatteQuality({}, 0.9)}, QualityParameters(kind="calibrated"))
    assert reason == (None, "no candidate matte of the kind calibrated")


def test_a_rejection_says_why(sphere):
    qualities = score(sphere, {"knn+": spoil(sphere)["hole"]})
    method, reason = choose(qualities)
    assert method is None
    floor = QualityParameters().floor
    assert reason.startswith(f"best score {qualities['knn+'].score:.2f} (knn+) is below the floor {floor:.2f}: ")
    assert choose({}) == (None, "no candidate matte")
    middling = MatteQuality({"noise": 0.6, "explained": 0.55}, 0.1)
    assert choose({"cf": middling})[1].endswith("does not explain the image")


def nodule_of(sphere, **mattes) -> Nodule:
    image, trimap, readers, _ = sphere
    candidates = [Matte(name, np.asarray(alpha, np.float32)) for name, alpha in mattes.items()]
    return Nodule(
        "N1", "P1", "cases", image=image, trimap=trimap, spacing=SPACING, readers=readers, candidates=candidates
    )


def test_assess_fills_in_scores_method_and_outcome(sphere):
    before = nodule_of(sphere, cf=sphere[3], knn=spoil(sphere)["noisy"])
    after = assess(before)
    assert (after.outcome, after.method, after.stage, after.reason) == (ACCEPTED, "cf", None, None)
    assert set(after.scores) == {"cf", "knn"}
    assert set(after.candidates[0].scores) == set(WEIGHTS)
    assert before.method is None
    assert not before.candidates[0].scores
    assert [m.score for m in assess(before).candidates] == [m.score for m in after.candidates]


def test_assess_rejects_below_the_floor(sphere):
    after = assess(nodule_of(sphere, cf=spoil(sphere)["inverted"]))
    assert (after.outcome, after.method, after.stage) == (REJECTED, None, "quality")
    assert "below the floor" in after.reason
    assert assess(nodule_of(sphere, cf=sphere[3]), QualityParameters(floor=1.0)).outcome == REJECTED


def test_assess_names_what_is_missing(sphere):
    whole = nodule_of(sphere, cf=sphere[3])
    with pytest.raises(InputError, match="N1: has no trimap"):
        assess(replace(whole, trimap=None))
    with pytest.raises(InputError, match="N1: there is no candidate"):
        assess(replace(whole, candidates=[]))
    with pytest.raises(InputError, match=r"N1: trimap has shape"):
        assess(replace(whole, trimap=whole.trimap[1:]))
    with pytest.raises(InputError, match="N1: the trimap has nothing but background"):
        assess(replace(whole, trimap=np.zeros(SHAPE, np.uint8)))


@pytest.mark.parametrize(
    "wrong", [{"weights": {"charm": 1.0}}, {"weights": {"noise": -1.0}}, {"weights": {}}, {"floor": 1.5}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(InputError):
        QualityParameters(**wrong)


def test_every_term_has_a_weight_and_words():
    assert set(TERMS) | {"converged"} == set(WEIGHTS)
    assert len(set(explain(dict.fromkeys(WEIGHTS, 0.1)))) == len(WEIGHTS)
    assert explain(dict.fromkeys(WEIGHTS, 0.9)) == []


def test_the_order_of_weights_is_no_part_of_a_score_or_a_key():
    parameters = QualityParameters(weights=dict(reversed(WEIGHTS.items())))
    terms = dict.fromkeys(WEIGHTS, 0.7) | {"noise": 0.31, "volume": 0.93}
    assert combine(terms, parameters) == combine(terms, QualityParameters())
    assert parameters.identity == QualityParameters().identity != QualityParameters(floor=0.4).identity


def test_flat_images_and_trimaps_without_a_side_have_scores_too(sphere):
    image, trimap, _, alpha = sphere
    flat = score_mattes(np.full(SHAPE, -500, np.float32), trimap, [], {"cf": alpha}, {}, SPACING)["cf"]
    assert flat.score < QualityParameters().floor
    everywhere = np.full(SHAPE, 128, np.uint8)
    for odd in (everywhere, np.where(trimap == 255, 128, trimap), np.where(trimap == 0, 128, trimap)):
        quality = score_mattes(image, odd.astype(np.uint8), [], {"cf": alpha}, {}, SPACING)["cf"]
        assert all(0 <= value <= 1 for value in quality.terms.values())


@pytest.mark.parametrize("fault", ["blurred", "shifted", "shrunk"])
def test_the_score_falls_as_the_true_error_grows(sphere, fault):
    _, trimap, _, alpha = sphere
    makers = {
        "blurred": lambda k: ndimage.gaussian_filter(alpha, 1.2 * k),
        "shifted": lambda k: ndimage.shift(alpha, (0, 0.6 * k, 0), order=1),
        "shrunk": lambda k: np.clip(ball(9.0 - 0.3 * k) + 0.5, 0, 1),
    }
    mattes = {str(k): np.where(trimap == 128, makers[fault](k), alpha) if k else alpha for k in range(4)}
    scores = [quality.score for quality in score(sphere, mattes).values()]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


def test_alpha_may_follow_another_channel_where_the_image_is_flat():
    shape, spacing = (16, 24, 24), (1.0, 1.0, 1.0)
    distance = distances(shape)
    alpha = np.clip((6.5 - distance) / 3, 0, 1).astype(np.float32)
    trimap = np.where(distance < 3, 255, np.where(distance < 8.5, 128, 0)).astype(np.uint8)
    image = (-850 + 880 * np.clip(10.5 - distance, 0, 1)).astype(np.float32)  # a wall all around
    scores = [
        score_mattes(image, trimap, [], {"cf": alpha}, {}, spacing, channels=channels)["cf"].terms
        for channels in ([], [5 * alpha], [np.zeros(shape, np.float32)])
    ]
    alone, beside, empty = scores
    assert beside["local_fit"] > alone["local_fit"] + 0.2
    assert beside["steps"] > alone["steps"] + 0.2
    assert empty == alone  # a channel without contrast says nothing


def test_a_channel_of_another_shape_is_refused():
    image = np.zeros((4, 5, 6), np.float32)
    trimap = np.full(image.shape, 128, np.uint8)
    with pytest.raises(ValueError, match=r"channels\[0\] has shape \(4, 5, 7\)"):
        score_mattes(image, trimap, [], {}, {}, (1, 1, 1), channels=[np.zeros((4, 5, 7), np.float32)])
