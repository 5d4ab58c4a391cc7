import base64
import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from labutils import plots

FRAME = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [2.0, 1.0, 0.5],
        "validation_loss": [1.9, 1.1, 0.8],
        "train_accuracy": [0.3, 0.6, 0.9],
        "validation_accuracy": [0.35, 0.55, 0.8],
    }
)


@pytest.fixture
def results():
    rows = [
        {
            "depth": depth,
            "width": width,
            "normalization": norm,
            "seed": seed,
            "test_top1": 0.9 + seed / 100 - depth / 50,
        }
        for depth in (1, 4)
        for width in (8, 16)
        for norm in ("none", "batch")
        for seed in (0, 1, 2)
    ]
    origin = {"data": "some digits", "source": "builtin", "epochs": 3, "processor": "an abacus", "torch": "2.0"}
    return pd.DataFrame(rows).assign(**origin)


def text_of(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def check_drawn(figure):
    picture = Image.open(io.BytesIO(figure.png()))
    assert 1_000 < picture.width < 1_400
    assert np.asarray(picture.convert("L")).std() > 5
    for axes in figure.axes:
        if axes.axison and axes.get_visible() and axes.lines + list(axes.collections):
            assert axes.get_xlabel() or axes.get_ylabel()


def test_history_draws_what_the_frame_holds():
    figure = plots.history(FRAME, caption="some digits")
    check_drawn(figure)
    loss, accuracy = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in accuracy.lines}
    assert drawn == {"validation": [0.35, 0.55, 0.8], "training": [0.3, 0.6, 0.9]}
    assert list(loss.lines[0].get_ydata()) == [1.9, 1.1, 0.8]
    assert "some digits" in text_of(figure)
    assert "(nats)" in loss.get_ylabel()
    assert "%" in accuracy.get_ylabel()


def test_the_newest_of_many_histories_stands_out():
    figure = plots.history({f"choice {number}": FRAME for number in range(8)})
    colours = {line.get_label(): line.get_color() for line in figure.axes[1].lines}
    assert colours["choice 7"] == plots.PLAIN
    assert colours["choice 0"] == plots.FAINT
    assert text_of(plots.history({})).count("nothing trained so far") == 2


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("losses", [[12345.6, 2.3, 0.1], [2.3024, 2.3026, 2.3036]])
def test_nothing_in_a_history_lies_over_something_else(count, losses):
    shares = [0.11346, 0.11354, 0.11362]
    frame = pd.DataFrame({"epoch": [1, 2, 3]})
    for part in ("train", "validation"):
        frame = frame.assign(**{f"{part}_loss": losses, f"{part}_accuracy": shares})
    frames = {f"choice {number}": frame for number in range(count)} if count else frame
    figure = plots.history(frames, caption="; ".join(["some digits of many"] * (2 * count + 1)))
    renderer = figure.drawn().get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [part.get_window_extent(renderer) for part in (*figure.texts, *figure.legends)]
    assert len(boxes) == 3 + bool(count)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)


def test_heatmap_shows_mean_and_spread_over_seeds(results):
    panels = {"Plain": {"normalization": "none"}, "Batch": {"normalization": "batch"}}
    figure = plots.depth_width_heatmap(results, panels=panels)
    check_drawn(figure)
    text = text_of(figure)
    assert text.count("89.00\n± 1.00") == 4  # depth 1: two widths in two panels
    assert text.count("83.00\n± 1.00") == 4
    assert any("some digits (builtin); n = 3 seeds; 3 epochs; an abacus; torch 2.0" in line for line in text)


def test_accuracy_by_depth_draws_means_and_bands(results):
    lines = {"width 8": {"width": 8, "normalization": "none"}, "width 16": {"width": 16, "normalization": "none"}}
    figure = plots.accuracy_by_depth(results, lines, metric="test_top1")
    check_drawn(figure)
    (axis,) = figure.axes
    assert len(axis.collections) == 2
    for line in axis.lines:
        assert list(line.get_ydata()) == pytest.approx([0.89, 0.83])


def test_confusion_matrix_counts(digits):
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predictions = torch.tensor([0, 1, 1, 2, 0, 0])
    figure = plots.confusion_matrix(labels, predictions, ["a", "b", "c"])
    check_drawn(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "0", "0", "1", "0", "2", "0", "1"]
    assert figure.axes[0].get_ylabel() == "true class"


def test_image_grid_marks_what_is_wrong(digits):
    images, labels = digits.test.images[:3], digits.test.labels[:3]
    predictions = labels.clone()
    predictions[1] = (labels[1] + 1) % 10
    figure = plots.image_grid(
        images, labels, digits.classes, predictions=predictions, confidences=torch.tensor([1.0, 0.5, 0.9])
    )
    check_drawn(figure)
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert ["✗" in title for title in titles] == [False, True, False]
    assert "50.0%" in titles[1]


def test_the_palette_is_told_apart_without_colour():
    light = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in (plots.PLAIN, plots.RESIDUAL)]
    assert abs(light[0] - light[1]) > 0.08


def test_a_chart_shows_itself_at_its_logical_width():
    bundle, metadata = plots.history(FRAME)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] == 850


def test_plain_and_residual_keep_their_colours_in_every_figure():
    styles = plots.line_styles(["residual", "plain, batch norm", "residual, scaled", "plain"])
    assert list(styles) == ["residual", "plain, batch norm", "residual, scaled", "plain"]
    assert tuple(styles["residual"]["color"][:3]) == pytest.approx(to_rgb(plots.RESIDUAL), abs=0.01)
    assert tuple(styles["plain, batch norm"]["color"][:3]) == pytest.approx(to_rgb(plots.PLAIN), abs=0.01)
    looks = {(style["color"], str(style["ls"]), style["marker"]) for style in styles.values()}
    assert len(looks) == 4
    assert ":" not in {style["ls"] for style in styles.values()}  # theory's


def test_gradient_profiles_are_geometric_means_with_theory_dotted():
    profile = pd.DataFrame({"layer": [1, 2, 1, 2], "norm": [1.0, 10.0, 100.0, 10.0], "seed": [0, 0, 1, 1]})
    figure = plots.gradient_profiles({"plain": profile}, rates={"plain": 0.5})
    (axis,) = figure.axes
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([10, 10])
    assert axis.lines[1].get_ydata().tolist() == pytest.approx([5, 10])
    assert axis.get_yscale() == "log"


def test_gradient_heatmaps_share_one_scale():
    probes = pd.DataFrame(
        {"epoch": [1, 1, 2, 2], "layer": [1, 2, 1, 2], "kind": "weight", "norm": [1e-3, 1.0, 1e-2, 1.0]}
    )
    figure = plots.gradient_heatmaps({"plain": probes, "residual": probes.assign(norm=100.0)})
    limits = {mesh.get_clim() for axis in figure.axes[:2] for mesh in axis.collections}
    assert limits == {(-3, 2)}


def test_lesions_and_correlations_draw_a_line_a_net():
    study = pd.DataFrame({"dropped": [0, 2, 3], "top1": [0.9, 0.5, 0.6]})
    (axis,) = plots.lesions({"plain": study, "residual": study}).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["plain", "residual"]
    assert axis.lines[0].get_ydata().tolist() == [0.5, 0.6]
    curve = pd.DataFrame({"distance": [0.0, 1.0, 0.0, 1.0], "correlation": [1.0, 0.2, 1.0, 0.4]})
    (axis,) = plots.correlations({"plain": curve}).axes
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([1, 0.3])


def test_a_live_profile_is_redrawn_with_what_came_before():
    live = plots.LiveProfile()
    one = pd.DataFrame({"layer": [1, 2, 3], "norm": [1e-3, 1e-2, 1e-1]})
    first = live.png(one, label="one", residual=False, rate=0.1, earlier=[])
    assert live.line.get_color() == plots.PLAIN
    assert live.theory.get_ydata().tolist() == pytest.approx([1e-3, 1e-2, 1e-1])
    second = live.png(one, label="one", residual=True, rate=None, earlier=[one.assign(norm=5.0)])
    assert live.line.get_color() == plots.RESIDUAL
    assert not live.theory.get_visible()
    assert live.axis.get_ylim()[1] > 5
    assert first != second


def test_accuracies_draw_a_row_a_setting(results):
    rows = {"plain, depth 1": {"depth": 1}, "residual, depth 4": {"depth": 4}}
    (axis,) = plots.accuracies(results, rows, metric="test_top1", lines={"teacher": 0.97}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(rows)
    assert [line.get_xdata() for line in axis.lines if line.get_linestyle() == "--"] == [[0.97, 0.97]]
    assert [text.get_text() for text in axis.texts] == ["teacher"]


@pytest.fixture
def epochs():
    rows = [
        {"residual": residual, "blocks": blocks, "seed": seed, "epoch": epoch, "run": f"{residual}{blocks}{seed}",
         "train_loss": 2.0 / epoch + seed / 10, "validation_accuracy": 0.3 + epoch / 10 + seed / 50 + residual / 20,
         "train_accuracy": 0.4, "validation_loss": 1.0, "seconds": 30.0}
        for residual in (False, True)
        for blocks in ("[1, 1, 1, 1]", "[2, 2, 2, 2]")
        for seed in range(3)
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(
        data="some pictures", source="builtin", epochs=3, processor="an abacus", torch="2.0"
    )


def test_epochs_draw_means_over_seeds_in_the_palette(epochs):
    figure = plots.epochs(epochs, {"plain": {"residual": False}, "residual": {"residual": True}})
    check_drawn(figure)
    losses, accuracies = figure.axes
    drawn = {line.get_label(): line for line in losses.lines}
    assert list(drawn["plain"].get_ydata()) == pytest.approx([2.1, 1.1, 2 / 3 + 0.1])
    assert to_rgb(drawn["plain"].get_color()) == to_rgb(plots.PLAIN)
    assert to_rgb(drawn["residual"].get_color()) == to_rgb(plots.RESIDUAL)
    assert list(accuracies.lines[1].get_ydata()) == pytest.approx([0.47, 0.57, 0.67])
    assert "n = 3 seeds" in " ".join(text_of(figure))


def test_accuracy_can_be_drawn_against_all_layers(results):
    layered = results.rename(columns={"depth": "layers"})
    figure = plots.accuracy_by_depth(layered, {"plain": {}}, metric="test_top1", depth="layers")
    assert "layers with weights" in figure.axes[0].get_xlabel()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "4"]


def test_loss_surfaces_share_their_levels():
    grid = [(x, y) for x in np.linspace(-1, 1, 5) for y in np.linspace(-1, 1, 5)]
    bowl = pd.DataFrame([{"x": x, "y": y, "loss": 0.1 + x**2 + y**2} for x, y in grid])
    steep = bowl.assign(loss=20 * bowl["loss"])
    figure = plots.loss_surfaces({"plain": steep, "residual": bowl}, caption="some pictures")
    check_drawn(figure)
    left, right, bar = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("plain", "residual")
    assert left.collections[0].get_clim() == right.collections[0].get_clim()
    assert "nats" in bar.get_ylabel()


def test_activation_maps_mark_what_is_wrong():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    labels, predictions = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    figure = plots.activation_maps(images, torch.randn(3, 4, 4), labels, predictions, ["cat", "dog"])
    check_drawn(figure)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["is cat\n✓ cat", "is dog\n✓ dog", "is dog\n✗ cat"]
    shown = figure.axes[3].images[1]
    assert shown.get_clim()[0] == -shown.get_clim()[1]


def test_a_ladder_numbers_its_rungs(results):
    timed = results.assign(seconds=100.0 * results["depth"])
    timed["test_flips_top1"] = (timed["test_top1"] + 0.01).where(timed["depth"] == 4)
    timed["residual"] = timed["depth"] == 4
    figure = plots.ladder(timed, {"plain recipe": {"depth": 1}, "better": {"depth": 4}})
    check_drawn(figure)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["plain recipe  1", "better  2"]
    filled = [line for line in left.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert [line.get_xdata()[0] for line in filled] == pytest.approx([0.89, 0.83])
    assert [line.get_color() for line in filled] == [plots.PLAIN, plots.RESIDUAL]
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata()[0] for line in hollow] == pytest.approx([0.84])
    assert "(seconds)" in right.get_xlabel()
    assert {text.get_text() for text in right.texts} == {"1", "2"}


def test_a_ladder_writes_the_numbers_of_rungs_in_one_place_side_by_side(results):
    alike = results.assign(seconds=100.0 + results["depth"], residual=True, test_flips_top1=np.nan)
    rungs = {"one": {"depth": 1}, "the same again": {"depth": 1}, "four": {"depth": 4}}
    right = plots.ladder(alike, rungs).axes[1]
    assert [text.get_text() for text in right.texts] == ["1 2", "3"]


def test_histories_that_say_plain_or_residual_are_coloured_so():
    figure = plots.history({"width 8, residual no": FRAME, "width 8, residual yes": FRAME})
    colours = {line.get_label(): to_rgb(line.get_color()) for line in figure.axes[1].lines}
    assert colours["width 8, residual no"] == to_rgb(plots.PLAIN)
    assert colours["width 8, residual yes"] == to_rgb(plots.RESIDUAL)


def test_a_ladder_can_be_drawn_against_what_learns(results):
    sized = results.assign(parameters=1000 * results["depth"], test_flips_top1=np.nan, residual=True)
    sized.loc[sized["depth"] == 1, "parameters"] = 0  # nothing learns
    figure = plots.ladder(sized, {"one": {"depth": 1}, "four": {"depth": 4}}, against="parameters")
    check_drawn(figure)
    right = figure.axes[1]
    assert right.get_xlabel() == "parameters that learn"
    assert sorted(line.get_xdata()[0] for line in right.lines if line.get_marker() == "o") == [0, 4000]


def test_accuracy_is_drawn_against_any_column(results):
    figure = plots.accuracy_against(
        results, {"transfer": {"depth": 1}, "scratch": {"depth": 4}}, metric="test_top1", across="width", xlabel="units"
    )
    check_drawn(figure)
    (axis,) = figure.axes
    drawn = {line.get_label(): line for line in axis.lines}
    assert list(drawn["transfer"].get_ydata()) == pytest.approx([0.89, 0.89])
    assert list(drawn["scratch"].get_xdata()) == [8, 16]
    assert {to_rgb(line.get_color()) for line in drawn.values()}.isdisjoint(
        {to_rgb(plots.PLAIN), to_rgb(plots.RESIDUAL)}
    )
    assert axis.get_xlabel() == "units"


def test_feature_maps_colour_the_groups_that_are_asked_for():
    places = np.random.default_rng(0).normal(size=(60, 2))
    groups = ["fish", "trees", "people"] * 20
    figure = plots.feature_maps({"PCA": places, "t-SNE": -places}, groups, ["trees", "people"], caption="some digits")
    check_drawn(figure)
    for axis, sign in zip(figure.axes, (1, -1), strict=True):
        grey, trees, people = axis.collections
        assert np.allclose(grey.get_offsets(), sign * places[0::3])
        assert np.allclose(trees.get_offsets(), sign * places[1::3])
        assert np.allclose(people.get_offsets(), sign * places[2::3])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["trees", "people"]


def test_groups_are_sorted_by_what_the_first_method_keeps():
    rows = [
        {"group": group, "seed": seed, "frozen": frozen + seed / 100, "transfer": full}
        for group, frozen, full in (("fish", 0.2, 0.8), ("trees", 0.3, 0.4), ("people", 0.1, 0.2))
        for seed in (-1, 0, 1)
    ]
    figure = plots.accuracies_by_group(pd.DataFrame(rows), ["frozen", "transfer"])
    check_drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fish", "people", "trees"]
    drawn = {container.get_label(): container.lines[0].get_xdata() for container in axis.containers}
    assert list(drawn["frozen"]) == pytest.approx([0.2, 0.1, 0.3])
    assert list(drawn["transfer"]) == pytest.approx([0.8, 0.2, 0.4])


def test_scores_have_the_newest_on_top():
    figure = plots.scores({"k 1": 0.25, "k 5": 0.5}, caption="some digits")
    check_drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["k 5", "k 1"]
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.25]
    assert [text.get_text() for text in axis.texts] == ["50.0%", "25.0%"]


def test_live_answers_move_their_bars_alone():
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    live = plots.LiveAnswers(images, torch.tensor([0, 1, 2]), ["cat", "dog", "car"], caption="some pictures")
    sharp, soft = torch.eye(3), torch.full((3, 3), 1 / 3)
    pictures = [
        np.asarray(Image.open(io.BytesIO(live.png(rows))).convert("RGB"), dtype=int) for rows in (sharp, soft, sharp)
    ]
    assert np.array_equal(pictures[0], pictures[2])
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=2) > 0
    assert changed.any()
    assert not changed[: changed.shape[0] // 3].any()  # where the images are
    assert [bar.get_width() for bar in live.bars[0]] == [1, 0, 0]


def test_gains_that_differ_from_nothing_are_bold():
    rows = [
        {"alpha": alpha, "temperature": temperature, "gain": mean + spread * step}
        for alpha, temperature, mean, spread in (
            (0.5, 1, 0.02, 0.001),
            (0.5, 4, 0.02, 0.01),  # two standard deviations: of three values, not enough
            (0.9, 4, -0.03, 0.001),
        )
        for step in (-1, 0, 1)
    ]
    labels = {"alpha": "weight of the teacher", "temperature": "temperature"}
    figure = plots.gains(pd.DataFrame(rows), rows="alpha", columns="temperature", labels=labels)
    check_drawn(figure)
    axis = figure.axes[0]
    texts = {text.get_text(): text.get_weight() for text in axis.texts}
    assert texts == {"+2.00\n± 0.10": "bold", "+2.00\n± 1.00": "normal", "": "normal", "-3.00\n± 0.10": "bold"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("temperature", "weight of the teacher")


def test_reliability_draws_a_dot_a_bin():
    table = pd.DataFrame({"confidence": [0.3, 0.9], "accuracy": [0.2, 0.7], "share": [0.25, 0.75]})
    figure = plots.reliability({"residual teacher": table, "student": table}, caption="some digits")
    check_drawn(figure)
    dots, others = (axis.collections[0] for axis in figure.axes)
    assert [to_rgb(drawn.get_facecolor()[0][:3]) for drawn in (dots, others)] == [
        to_rgb(colour) for colour in (plots.RESIDUAL, plots.PLAIN)
    ]
    assert np.allclose(dots.get_offsets(), [[0.3, 0.2], [0.9, 0.7]])
    assert dots.get_sizes()[1] > 2 * dots.get_sizes()[0]
