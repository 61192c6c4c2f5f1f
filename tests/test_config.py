import ast
import inspect
import typing

from flaxcls import config as configs
from flaxcls.config import ModelConfig
from flaxcls.data import DATASETS
from flaxcls.losses import LOSSES
from flaxcls.models import MODELS
from flaxcls.models.layers import ACTIVATIONS, NORMS, POOLINGS
from flaxcls.optim import OPTIMIZERS, SCHEDULES
from flaxcls.validation import choices


def test_the_names_it_knows_are_those_there_are():
    literal = lambda hint: set(typing.get_args(hint))  # noqa: E731
    assert literal(configs.SourceName) == set(DATASETS)
    assert literal(configs.ModelName) == set(MODELS)
    assert literal(configs.LossName) == set(LOSSES)
    assert literal(configs.OptimizerName) == set(OPTIMIZERS)
    assert literal(configs.ScheduleName) == set(SCHEDULES)
    assert literal(configs.ActivationName) == set(ACTIVATIONS)
    assert literal(configs.NormName) == set(NORMS)
    assert set(choices(typing.get_type_hints(ModelConfig)["pooling"])) == {*POOLINGS, None}


def test_every_field_has_a_help_text():
    tree = ast.parse(inspect.getsource(configs))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for field, following in zip(node.body[1:], node.body[2:], strict=False):
                nested = isinstance(field, ast.AnnAssign) and "Config" in ast.unparse(field.annotation)
                if isinstance(field, ast.AnnAssign) and not nested:
                    assert isinstance(following, ast.Expr), f"{node.name}.{ast.unparse(field)} has no help text"
