import json

import pytest

from flaxcls.config import Config, DataConfig, ModelConfig, OptimConfig
from flaxcls.config_json import differences, from_json, to_json
from flaxcls.errors import InputError


def test_it_is_read_back_equal():
    config = Config(
        seed=3,
        model=ModelConfig(widths=(1, 2), dense=()),
        optim=OptimConfig(clip_norm=0.5, rate_factors={"b": 1, "a": 0.5}),
    )
    assert from_json(to_json(config)) == config
    assert list(from_json(to_json(config)).optim.rate_factors) == ["b", "a"]
    assert from_json(to_json(Config())) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the configuration is not JSON"),
        (to_json(Config()).replace('"seed"', '"sed"'), "unknown field 'sed'. Did you mean 'seed'"),
        (
            to_json(Config()).replace('"widths"', '"width"'),
            r"unknown field 'model\.width'. Did you mean 'model\.widths'",
        ),
        ("null", "the configuration is None, but must be an object"),
        (json.dumps({"seed": 0, "data": [1]}), r"the configuration at data is \[1\], but must be an object"),
    ],
)
def test_a_file_that_is_no_configuration(text, message):
    with pytest.raises(InputError, match=message):
        from_json(text)


def test_a_field_that_an_older_version_did_not_have_gets_its_default():
    values = json.loads(to_json(Config(seed=3)))
    del values["loop"]["steps_per_dispatch"], values["stop"]
    assert from_json(json.dumps(values)) == Config(seed=3)


@pytest.mark.parametrize(
    ("source", "test_from"), [("folder", "train"), ("tfds", "validation"), ("digits", "validation")]
)
def test_a_run_of_an_earlier_version_keeps_its_test_split(source, test_from):
    values = json.loads(to_json(Config(data=DataConfig(source=source))))
    assert from_json(json.dumps(values)).data.test_from == "validation"
    del values["data"]["test_from"]
    assert from_json(json.dumps(values)).data.test_from == test_from


@pytest.mark.parametrize(
    ("place", "column"), [("t.csv", "split"), ("T.PARQUET", "split"), ("pets", None), (None, None)]
)
def test_a_table_of_an_earlier_version_is_split_by_no_column_of_a_similar_name(place, column):
    values = json.loads(to_json(Config(data=DataConfig(source="folder", dir=place))))
    assert from_json(json.dumps(values)).data.split_column is None
    del values["data"]["split_column"]
    assert from_json(json.dumps(values)).data.split_column == column


def test_differences_are_named():
    one, other = Config(), Config(seed=1, optim=OptimConfig(learning_rate=1.0))
    assert differences(one, one) == []
    assert differences(one, other) == ["seed: 0 -> 1", "optim.learning_rate: 0.004 -> 1.0"]


def test_an_order_that_decides_is_a_difference():
    one, other = (Config(optim=OptimConfig(rate_factors=factors)) for factors in ({"a": 1, "*": 2}, {"*": 2, "a": 1}))
    assert differences(one, one) == []
    assert differences(one, other) == ["optim.rate_factors: {'a': 1, '*': 2} -> {'*': 2, 'a': 1}"]
