import inspect
import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from PIL import Image
from seaborn.utils import relative_luminance
from torch import nn

import labutils as lab
from labutils.models.resnet import BasicBlock
from labutils.notebook import diagrams
from labutils.notebook.plots import Chart

NAMES = [
    name
    for name, value in vars(diagrams).items()
    if inspect.isfunction(value) and value.__annotations__.get("return") is Chart
]
THEMES = ("#ffffff", "#111111", "#212121")  # what is behind an output in JupyterLab's light and dark themes


@pytest.fixture(params=NAMES)
def drawn(request):
    figure = getattr(lab.diagrams, request.param)()
    figure.drawn()
    return figure


def contrast(one, other):
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    low, high = sorted((relative_luminance(one), relative_luminance(other)))
    return (high + 0.05) / (low + 0.05)


def texts_of(figure):
    return [text for axis in figure.axes for text in axis.texts]


def extent(text):
    """A text's place, with the box that fits it, if there is one."""
    around = text.get_bbox_patch()
    return around.get_window_extent() if around else text.get_window_extent()


def ground_of(text):
    """The box that a text is on."""
    inside = text.get_window_extent()
    boxes = [text.get_bbox_patch()] if text.get_bbox_patch() else text.axes.patches[::-1]
    for patch in boxes:
        around = patch.get_window_extent()
        if around.x0 <= inside.x0 and around.y0 <= inside.y0 and inside.x1 <= around.x1 and inside.y1 <= around.y1:
            return patch
    raise AssertionError(f"{text.get_text()!r} does not fit into a box")


def test_there_is_a_diagram_for_each_idea():
    assert {"residual_block", "zero_init_block", "receptive_field", "transfer_ladder", "distillation"} == set(NAMES)


def test_it_shows_itself_as_a_picture_with_words(drawn):
    bundle = drawn._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    image = ElementTree.fromstring(bundle["text/html"].replace('">', '"/>'))
    assert image.tag == "img"
    assert image.get("src").startswith("data:image/png;base64,")
    assert image.get("alt") == bundle["text/plain"] == drawn.alt
    assert 100 < len(drawn.alt) < 1_200
    assert drawn.alt.endswith(".")
    assert not drawn.alt.endswith("..")
    picture = np.asarray(Image.open(io.BytesIO(drawn.png())))
    assert (picture[..., 3] == 0).mean() > 0.4  # what is not drawn is transparent


def test_it_can_be_saved_as_svg(drawn, tmp_path):
    drawn.savefig(tmp_path / "drawn.svg")
    root = ElementTree.parse(tmp_path / "drawn.svg").getroot()
    assert len(root.findall(".//svg:path", {"svg": "http://www.w3.org/2000/svg"})) > 10


def test_words_and_lines_stand_out_in_each_theme(drawn):
    for text in texts_of(drawn):
        assert contrast(to_hex(text.get_color()), to_hex(ground_of(text).get_facecolor())) >= 4.5, text.get_text()
    patches = [patch for axis in drawn.axes for patch in axis.patches]
    boxes = [text.get_bbox_patch() for text in texts_of(drawn) if text.get_bbox_patch()]
    strokes = {to_hex(patch.get_edgecolor()) for patch in (*patches, *boxes)}
    strokes |= {to_hex(line.get_color()) for axis in drawn.axes for line in axis.lines}
    for stroke, ground in itertools.product(strokes, THEMES):
        assert contrast(stroke, ground) >= 3, (stroke, ground)


def test_nothing_lies_over_words_or_outside(drawn):
    (axis,) = drawn.axes
    for text in texts_of(drawn):
        box = extent(text)
        assert 0 <= box.x0 < box.x1 <= drawn.bbox.width
        assert 0 <= box.y0 < box.y1 <= drawn.bbox.height
    for one, other in itertools.combinations(texts_of(drawn), 2):
        assert not extent(one).overlaps(extent(other)), (one.get_text(), other.get_text())
    solid = [patch for patch in axis.patches if not isinstance(patch, FancyArrowPatch)]
    grounds = [patch.get_window_extent() for patch in solid]
    grounds += [text.get_bbox_patch().get_window_extent() for text in texts_of(drawn) if text.get_bbox_patch()]
    for one, other in itertools.combinations(grounds, 2):
        assert not one.overlaps(other)
    arrows = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    assert all(arrow.x0 >= 0 and arrow.x1 <= drawn.bbox.width for arrow in arrows)


# What the diagrams say is so


def test_a_zero_initialised_block_is_its_skip_and_only_its_last_norm_learns():
    block = BasicBlock(4, 4, 1, residual=True)
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y, x)
    (y * torch.rand_like(y)).sum().backward()
    assert {name for name, parameter in block.named_parameters() if parameter.grad.any()} == {
        "norm2.weight",
        "norm2.bias",
    }


@pytest.mark.parametrize("strides", [(1, 2, 1), (2, 2), (1, 1, 1, 2)])
def test_receptive_fields_are_what_gradients_reach(strides):
    places = torch.ones(1, 1, 33, 1, requires_grad=True)
    y = places
    for number, stride in enumerate(strides, start=1):
        y = nn.functional.conv2d(y, torch.ones(1, 1, 3, 1), stride=stride, padding=(1, 0))
        middle = y.shape[2] // 2
        reached = [
            torch.autograd.grad(y[0, 0, place, 0], places, retain_graph=True)[0].flatten().nonzero().flatten()
            for place in (middle, middle + 1)
        ]
        apart = int(reached[1].float().mean() - reached[0].float().mean())
        assert diagrams.receptive_fields(strides)[number] == (len(reached[0]), apart)


def test_the_ladder_freezes_what_unfreeze_freezes():
    figure = diagrams.transfer_ladder()
    cells = [text for text in texts_of(figure) if text.get_text() in diagrams.LOOKS]
    rows = itertools.groupby(cells, key=lambda text: text.get_position()[1])
    states = [[text.get_text() for text in row] for _, row in rows]
    for stages, row in zip((0, 1, 2, 3, -1), states, strict=False):
        model = lab.unfreeze(lab.ResNet((1, 1, 1, 1), width=2), stages)
        parts = [model.stem, *model.stages, model.head]
        learns = [all(parameter.requires_grad for parameter in part.parameters()) for part in parts]
        assert learns == [state != "frozen" for state in row]
    assert len(states) == 6
    assert set(states[-1]) == {"new"}  # from scratch


def test_it_is_loaded_when_it_is_used():
    assert lab.diagrams is diagrams
    assert "diagrams" in dir(lab)
