import pytest
import yaml

from src.data.yaml_text import number_text, replace_entry, set_value


def set_norm(text):
    text = set_value(text, ("DATA", "NORM", "STD"), "0.25")
    return set_value(text, ("DATA", "NORM", "MEAN"), "0.5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "# a\nDATA:\n  K: 32   # bins\n  NORM:\n    MEAN: 0.0  # of log1p\n    STD: 1.0\nA: 1",
            "# a\nDATA:\n  K: 32   # bins\n  NORM:\n    MEAN: 0.5  # of log1p\n    STD: 0.25\nA: 1",
        ),
        (
            "DATA:\n  NORM: {MEAN: 0, STD: 1}  # flow\n",
            "DATA:\n  NORM: {MEAN: 0.5, STD: 0.25}  # flow\n",
        ),
        ("DATA: {K: 3}\n", "DATA: {NORM: {MEAN: 0.5, STD: 0.25}, K: 3}\n"),
        (
            "DATA:\n    K: 3  # four\n",
            "DATA:\n    NORM:\n      MEAN: 0.5\n      STD: 0.25\n    K: 3  # four\n",
        ),
        (
            "DATA:\n  NORM:\n    STD: 1.0  # s\n",
            "DATA:\n  NORM:\n    MEAN: 0.5\n    STD: 0.25  # s\n",
        ),
        ("DATA:\n  NORM:\n  K: 3\n", "DATA:\n  NORM: {MEAN: 0.5, STD: 0.25}\n  K: 3\n"),
        ("DATA:\n  NORM: {}\n", "DATA:\n  NORM: {MEAN: 0.5, STD: 0.25}\n"),
        (
            "DATA:\n  NORM:\n    MEAN:\n    STD: 1\n",
            "DATA:\n  NORM:\n    MEAN: 0.5\n    STD: 0.25\n",
        ),
        ("A: 1 # é\n", "DATA:\n  NORM:\n    MEAN: 0.5\n    STD: 0.25\nA: 1 # é\n"),
        ("# only\n", "# only\nDATA:\n  NORM:\n    MEAN: 0.5\n    STD: 0.25\n"),
        (
            "DATA:\r\n  NORM:\r\n    MEAN: 0.0\r\n    STD: 1.0\r\n",
            "DATA:\r\n  NORM:\r\n    MEAN: 0.5\r\n    STD: 0.25\r\n",
        ),
    ],
)
def test_only_the_values_change(text, expected):
    assert set_norm(text) == expected
    assert set_norm(expected) == expected
    assert yaml.safe_load(expected)["DATA"]["NORM"] == {"MEAN": 0.5, "STD": 0.25}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DATA: [1]\n", "DATA: expected a mapping"),
        ("DATA:\n  NORM: 3\n", "NORM: expected a mapping, found '3'"),
        ("DATA:\n  NORM:\n    MEAN: [1]\n", "MEAN: expected a single value"),
        ("DATA: {\n", "not valid YAML"),
    ],
)
def test_what_cannot_be_changed(text, expected):
    with pytest.raises(ValueError, match=expected):
        set_norm(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.3046961, "0.304696"), (1.0, "1.0"), (12345678.0, "1.23457e+07"), (1e-7, "1.0e-07")],
)
def test_numbers_are_read_back_as_floats(value, text):
    assert number_text(value) == text
    assert yaml.safe_load(text) == pytest.approx(value, rel=1e-5)
    assert isinstance(yaml.safe_load(text), float)
    assert number_text(yaml.safe_load(text)) == text


def test_an_entry_is_replaced_and_comments_stay():
    text = "# head\nsource: a  # where\nfingerprint:\n  train: {a: 1}\nblur_kind: blur  # kind\n"
    changed = replace_entry(text, "fingerprint", {"train": {"a": 2}})
    assert changed == (
        "# head\nsource: a  # where\nblur_kind: blur  # kind\nfingerprint:\n  train:\n    a: 2\n"
    )
    assert replace_entry(changed, "fingerprint", {"train": {"a": 2}}) == changed
    assert replace_entry("source: a", "b", 1) == "source: a\nb: 1\n"
    with pytest.raises(ValueError, match="key: value"):
        replace_entry("[1]", "b", 1)
