import io

from flax import linen as nn
from rich.console import Console

from flaxcls.models import CNN
from flaxcls.models.summary import layers, table


def test_parameters_and_flops_of_the_tutorials_network_by_hand():
    rows = {row.path: row for row in layers(CNN(10, padding="valid"), (32, 32, 3))}
    assert [(row.path, row.shape, row.parameters) for row in rows.values() if row.parameters] == [
        ("Conv_0", (30, 30, 32), 896),
        ("Conv_1", (13, 13, 64), 18_496),
        ("Conv_2", (4, 4, 64), 36_928),
        ("Dense_0", (64,), 65_600),
        ("Dense_1", (10,), 650),
    ]
    assert rows["Conv_0"].flops == 2 * 27 * 32 * 30 * 30
    assert rows["Conv_2"].flops == 2 * 9 * 64 * 64 * 4 * 4
    assert rows["Dense_0"].flops == 2 * 1024 * 64


def test_nested_modules_are_listed_by_their_innermost_ones():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (1, 1))(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = Block()(images)
            return nn.Dense(2)(Block()(x).mean(axis=(1, 2)))

    assert [row.path for row in layers(Model(), (4, 4, 1))] == ["Block_0/Conv_0", "Block_1/Conv_0", "Dense_0"]


def test_a_module_called_twice_has_its_parameters_once_and_what_a_model_holds_itself_is_in_the_total():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            shared = nn.Dense(4)
            scale = self.param("scale", nn.initializers.ones, (1, 1))
            x = shared(shared(images.mean(axis=(1, 2))))
            return nn.DenseGeneral((2, 3))(x * scale).sum(axis=1)

    rows = layers(Model(), (4, 4, 4))
    assert [row.parameters for row in rows] == [20, 0, 30]
    assert [row.flops for row in rows] == [32, 32, 2 * 4 * 6]
    console = Console(width=80, file=io.StringIO())
    console.print(table(Model(), (4, 4, 4)))
    assert "51" in console.file.getvalue()


def test_the_table_fits_a_terminal_and_shows_the_total():
    console = Console(width=80, file=io.StringIO())
    console.print(table(CNN(10, padding="valid"), (32, 32, 3)))
    text = console.file.getvalue()
    assert "122,570" in text
    assert max(map(len, text.splitlines())) <= 80
