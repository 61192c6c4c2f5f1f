"""Models of packages from the index, which know nothing of flaxcls: they train, resume, load and predict alike."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxcls import eval_step
from tests.foreign.runs import assert_resumes_and_loads
from tests.test_step import KEY, make_batch, setup

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]


class JaxResNet(nn.Module):
    """jax-resnet takes no `train`: its batch normalisation looks whether its statistics may change."""

    @nn.compact
    def __call__(self, images, train):
        import jax_resnet

        return jax_resnet.ResNet(
            jax_resnet.ResNetBlock, stage_sizes=[1, 1], n_classes=3, hidden_sizes=(8, 16), pool_fn=lambda x: x
        )(images)


def make(name):
    if name == "jax-resnet":
        return JaxResNet()
    import flaxmodels

    # it is called as flaxcls calls models, so it needs no wrapper
    return flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False, num_classes=3)


@pytest.mark.parametrize("name", ["jax-resnet", "flaxmodels"])
def test_it_trains(name):
    model = make(name)
    with jax.numpy_rank_promotion("allow"):  # on which flaxmodels relies
        state, step = setup(model, optax.sgd(1e-2))
        before = eval_step(state, make_batch(), model=model)
        new = state
        for _ in range(10):
            new, _ = step(new, make_batch(), KEY)
        after = eval_step(new, make_batch(), model=model)
    assert after.loss < before.loss
    for old, now in zip(jax.tree.leaves(state.model_state), jax.tree.leaves(new.model_state), strict=True):
        assert not np.array_equal(old, now)


def test_a_run_with_it_resumes_and_loads(stripes, small_config, tmp_path, quiet):
    assert_resumes_and_loads(small_config, stripes, make("jax-resnet"), optax.adam(1e-2), tmp_path, quiet)
