"""Readings of an expression relative to the face at rest."""

import numpy as np
import pytest

from expressions.inference.neutral import MAX_NEUTRAL_LOG_ODDS, NeutralFace


def test_readings_are_relative_to_the_neutral_face_within_bounds():
    sad, others = NeutralFace(2, 0.0), np.float32([0.01, 0.01, 0.28, 0.7])
    for seconds in (0.0, 0.5, 1.0):
        corrected = sad.correct(others, seconds)
    assert corrected.argmax() == 2 and corrected.sum() == pytest.approx(1, abs=1e-5)
    extreme = sad.correct(np.float32([0.001, 0.001, 0.001, 0.997]), 2.0)
    assert extreme.argmax() == 3  # much sadder than at rest
    bound = NeutralFace(0, 0.0)
    bound.correct(np.float32([1e-6, 1]), 1.0)
    assert bound.log_odds.max() == MAX_NEUTRAL_LOG_ODDS
