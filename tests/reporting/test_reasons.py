"""Words on polygons say what the columns say, and nothing of columns that are not there."""

import math

import pytest

from geood.reporting.reasons import plain, reasons

ROW = {
    "class_name": "road",
    "runner_up": "roof",
    "margin": 0.05,
    "contrast": 0.3,
    "p_value": 1 / 1234,
    "signal": "hybrid",
    "on_edge": 0.8,
    "valid_fraction": 0.4,
}


def test_each_column_has_its_sentence():
    said = " ".join(reasons(ROW))
    for part in ("undecided between road and roof", "0.3 higher", "One in 1,200 pixels", "80 % of it", "Only 40 %"):
        assert part in said
    assert "It stands out for the classes and the outlier head (hybrid)." in said
    assert "It looks unlike the training images of its class (encoder neighbours)." in reasons(
        ROW | {"signal": "encoder_knn"}
    )
    assert len(reasons(ROW)) == 6
    assert "Only" not in " ".join(reasons(ROW | {"valid_fraction": 0.997})), "which would be 100 %"


@pytest.mark.parametrize("gone", ROW)
def test_a_column_that_is_missing_or_unknown_says_nothing(gone):
    fewer = {key: value for key, value in ROW.items() if key != gone}
    unknown = ROW | {gone: None if isinstance(ROW[gone], str) else math.nan}
    assert reasons(fewer) == reasons(unknown) and "nan" not in " ".join(reasons(unknown))
    assert reasons({}) == []


def test_what_does_not_stand_out_is_told_so():
    assert any("does not stand out" in sentence for sentence in reasons(ROW | {"contrast": -0.1}))
    assert "Hardly any" in " ".join(reasons(ROW | {"p_value": 0.0}))


def test_numbers_are_told_without_powers_of_ten():
    assert [plain(v) for v in (0, 0.01234, 12.345, 1234.5, 2e6)] == ["0", "0.0123", "12.3", "1,234", "2,000,000"]
