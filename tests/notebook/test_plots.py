import base64
import io
import itertools
import threading

import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib import pyplot
from matplotlib.colors import LogNorm, to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from PIL import Image

from labutils.errors import SettingError, UnknownSetting
from labutils.notebook import plots
from labutils.notebook.plots import style

FRAME = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [2.0, 1.0, 0.5],
        "validation_loss": [1.9, 1.1, 0.8],
        "train_accuracy": [0.3, 0.6, 0.9],
        "validation_accuracy": [0.35, 0.55, 0.8],
    }
)
ORIGIN = {"data": "some digits", "source": "builtin", "epochs": 3, "processor": "an abacus", "torch": "2.0"}


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
    return pd.DataFrame(rows).assign(**ORIGIN)


@pytest.fixture
def epochs():
    rows = [
        {"residual": residual, "seed": seed, "epoch": epoch, "train_loss": 2.0 / epoch + seed / 10,
         "validation_accuracy": 0.3 + epoch / 10 + seed / 50 + residual / 20}
        for residual in (False, True)
        for seed in range(3)
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**ORIGIN)


def text_of(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def lines_of(axis):
    """The lines of an axes that have their names at their ends, by those."""
    return next(lines for axes, lines, _ in axis.figure.named if axes is axis)


def check_drawn(figure):
    picture = Image.open(io.BytesIO(figure.png()))
    assert 1_000 < picture.width < 1_400
    assert np.asarray(picture.convert("L")).std() > 5
    for axes in figure.axes:
        if axes.axison and axes.get_visible() and axes.lines + list(axes.collections):
            assert axes.get_xlabel() or axes.get_ylabel()


# What is chosen from results


@pytest.mark.parametrize("value", [1, 1.0, "1.0", np.float32(1)])
def test_a_column_of_numbers_and_text_matches_both(value):
    mixed = pd.DataFrame({"residual_scale": [1.0, "1.0", "depth", 2.0, None]})
    assert list(plots.matching(mixed, {"residual_scale": value}).index) == [0, 1]
    assert list(plots.matching(mixed, {"residual_scale": "depth"}).index) == [2]


def test_none_lists_and_truth_values_match_what_a_table_holds():
    table = pd.DataFrame({"scheduler": ["none", "cosine"], "blocks": ["[2, 2]", "[1, 1]"], "residual": [True, False]})
    assert list(plots.matching(table, {"scheduler": None, "blocks": [2, 2], "residual": True}).index) == [0]
    assert list(plots.matching(table, {"residual": "False"}).index) == [1]
    assert plots.matching(table, {"blocks": [3, 3], "residual": True}).empty


def test_an_unknown_column_is_named():
    with pytest.raises(UnknownSetting, match=r"normalisation.*did you mean normalization"):
        plots.matching(pd.DataFrame({"normalization": ["none"]}), {"normalisation": "none"})


def test_what_matches_no_run_is_named(results):
    nothing = {"deep one": {"depth": 99}}
    for draw in (plots.accuracy_by_depth, plots.accuracies):
        with pytest.raises(SettingError, match=r"deep one.*'depth': 99"):
            draw(results, {"fine": {}, **nothing}, metric="test_top1")
    with pytest.raises(SettingError, match=r"panel.*deep one"):
        plots.depth_width_heatmap(results, panels=nothing)
    with pytest.raises(SettingError, match=r"rung.*deep one"):
        plots.ladder(results, nothing)
    with pytest.raises(SettingError, match=r"line.*deep one"):
        plots.epochs(results, nothing)
    with pytest.raises(SettingError, match="at least one line"):
        plots.accuracy_by_depth(results, {}, metric="test_top1")


def test_origin_says_what_results_rest_on(results):
    assert plots.origin(results) == "some digits (builtin); n = 3 seeds; 3 epochs; an abacus; torch 2.0"
    assert "n = 1 seed;" in plots.origin(results.drop(columns="seed"))


def test_captions_are_about_what_is_drawn_and_missing_figures_are_named(results):
    strangers = pd.concat([results, results.assign(normalization="layer", epochs=50)])
    panels = {"plain": {"normalization": "none"}}
    assert "; 3 epochs;" in plots.depth_width_heatmap(strangers, panels=panels).caption
    results.loc[3, "test_top1"] = float("nan")
    everything = {"all": {}}
    for draw in (
        lambda: plots.depth_width_heatmap(results),
        lambda: plots.accuracies(results, everything, metric="test_top1"),
        lambda: plots.accuracy_by_depth(results, everything, metric="test_top1"),
    ):
        with pytest.raises(SettingError, match="test_top1: 'missing: row 3'"):
            draw()


def test_a_caption_counts_the_seeds_of_each_label(results):
    alike = {"every seed": {"width": 16}, "one seed": {"width": 16, "seed": 0}}
    figure = plots.accuracies(results, alike, metric="test_top1")
    assert "n = 1 to 3 seeds;" in figure.caption
    fitted = results.assign(data_seed=results["seed"], seed=0)
    assert "n = 3 seeds;" in plots.accuracies(fitted, {"fitted heads": {"width": 16}}, metric="test_top1").caption


# What all charts share


def test_a_chart_shows_itself_at_its_logical_width_and_in_words():
    figure = plots.history(FRAME, caption='some "digits"')
    bundle = figure._repr_mimebundle_()
    assert figure.alt == (
        "Lines of loss and accuracy over the epochs. Panels: Loss; Accuracy. "
        "Lines: Accuracy, validation from 35.0% to 80.0%; Accuracy, training from 30.0% to 90.0%. "
        'Axes: epoch; loss (nats); accuracy (%). some "digits".'
    )
    png = base64.b64encode(figure.png()).decode()
    alt = figure.alt.replace('"', "&quot;")
    assert bundle == {
        "text/html": f'<img src="data:image/png;base64,{png}" alt="{alt}" width="850">',
        "text/plain": figure.alt,
    }


def test_charts_are_drawn_in_threads_without_pyplot(results):
    before = pyplot.get_fignums(), dict(pyplot.rcParams)
    drawn = []

    def draw():
        drawn.append(plots.depth_width_heatmap(results).png())
        drawn.append(plots.accuracies(results, {"plain": {}}, metric="test_top1").png())

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 4
    assert len(set(drawn)) == 2  # the same pictures in both threads
    assert (pyplot.get_fignums(), dict(pyplot.rcParams)) == before


def test_the_palette_is_told_apart_without_colour():
    light = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in (plots.PLAIN, plots.RESIDUAL)]
    assert abs(light[0] - light[1]) > 0.08


def test_plain_and_residual_keep_their_colours_in_every_figure():
    labels = ["residual", "plain, batch norm", "residual, scaled", "plain"]
    looks = style.line_looks(labels)
    assert list(looks["palette"].values()) == [plots.RESIDUAL, plots.PLAIN, plots.RESIDUAL, plots.PLAIN]
    assert len({tuple(str(looks[part][label]) for part in looks) for label in labels}) == 4
    for family in (labels[::2], labels[1::2]):
        for part in ("dashes", "markers"):
            assert len({looks[part][label] for label in family}) == 2
    assert style.THEORY["ls"] == ":"
    assert all(not dashes or dashes[0] >= 4 for dashes in style.DASHES)  # none that could be taken for theory's dots


def test_accuracy_labels_name_split_and_metric():
    assert style.accuracy_label("test_top1") == "test accuracy (%)"
    assert style.accuracy_label("validation_top5") == "validation top-5 accuracy (%)"
    assert style.accuracy_label("validation_accuracy") == "validation accuracy (%)"


THEMES = ("#ffffff", "#111111", "#212121")  # what is behind a figure in JupyterLab's light and dark themes


def contrast(one, other):
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    low, high = sorted((sns.utils.relative_luminance(one), sns.utils.relative_luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_that_is_drawn_stands_out_from_light_and_dark(results):
    palette = {plots.PLAIN, plots.RESIDUAL, *style.OTHERS, *style.FAMILIES.values(), style.FAINT, style.INK}
    lines = {
        f"width {width}, {norm}": {"width": width, "normalization": norm}
        for width in (8, 16)
        for norm in ("none", "batch")
    }
    profile = pd.DataFrame({"layer": [1, 2, 3], "norm": [1e-3, 1e-2, 1e-1]})
    figures = [
        plots.history({f"choice {number}": FRAME for number in range(8)}),
        plots.accuracy_by_depth(results, lines, metric="test_top1"),
        plots.gradient_profiles({"plain": profile, "residual": 2 * profile}, rates={"plain": 0.5}),
        plots.scores({"k 1": 0.25, "k 5": 0.5}),
        plots.accuracies(results, {"plain": {}}, metric="test_top1", lines={"teacher": 0.97}),
    ]
    grid = to_hex(pyplot.rcParams["grid.color"])
    for figure in figures:
        figure.png()
        lines = [line for line in figure.findobj(Line2D) if to_hex(line.get_color()) != grid]
        bars = [bar for axes in figure.axes for bar in axes.patches]
        assert {artist.get_alpha() for artist in (*lines, *bars)} == {None}
        palette |= {to_hex(artist.get_color()) for artist in (*lines, *figure.findobj(Text))}
        palette |= {to_hex(artist.get_facecolor()) for artist in bars}
        palette |= {to_hex(spine.get_edgecolor()) for spine in figure.findobj(Spine)}
    worst = {colour: min(contrast(colour, behind) for behind in THEMES) for colour in palette}
    assert {colour: value for colour, value in worst.items() if value < 3} == {}


def test_a_figure_is_transparent(results):
    picture = np.asarray(Image.open(io.BytesIO(plots.history(FRAME).png())))
    assert (picture[..., 3] == 0).mean() > 0.7


def test_names_at_the_ends_of_lines_do_not_lie_over_one_another():
    frames = {
        f"plain, {number}": pd.DataFrame({"layer": [1, 2], "norm": [1.0, 2.0 + number / 1e3]}) for number in range(6)
    }
    figure = plots.gradient_profiles(frames)
    renderer = figure.drawn().get_renderer()
    names = figure.axes[0].texts
    assert [text.get_text() for text in names] == list(frames)
    boxes = [text.get_window_extent(renderer) for text in names]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1) for box in boxes)


# Figures that are redrawn


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


def test_a_history_of_one_epoch_is_seen():
    assert {line.get_marker() for line in plots.history(FRAME[:1]).axes[0].lines} == {"o"}
    assert {line.get_marker() for line in plots.history(FRAME).axes[0].lines} == {"None"}


def test_the_newest_of_many_histories_stands_out():
    figure = plots.history({f"choice {number}": FRAME for number in range(8)})
    lines = lines_of(figure.axes[1])
    assert (lines["choice 7"].get_color(), lines["choice 0"].get_color()) == (plots.PLAIN, style.FAINT)
    assert lines["choice 7"].get_linewidth() > lines["choice 0"].get_linewidth()
    assert len({line.get_marker() for line in lines.values()}) == len(style.MARKERS)
    assert figure.legends[0].get_texts()[0].get_text() == "8   choice 7"
    assert text_of(plots.history({})).count("nothing trained so far") == 2


def test_histories_that_say_plain_or_residual_are_coloured_so():
    figure = plots.history({"width 8, residual no": FRAME, "width 8, residual yes": FRAME})
    colours = {line.get_label(): line.get_color() for line in figure.axes[1].lines[::2]}
    assert colours == {"width 8, residual no": plots.PLAIN, "width 8, residual yes": plots.RESIDUAL}


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("losses", [[12345.6, 2.3, 0.1], [2.3024, 2.3026, 2.3036]])
def test_nothing_in_a_history_lies_over_something_else(count, losses):
    frame = pd.DataFrame({"epoch": [1, 2, 3]})
    for part in ("train", "validation"):
        frame = frame.assign(**{f"{part}_loss": losses, f"{part}_accuracy": [0.11346, 0.11354, 0.11362]})
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


def test_scores_have_the_newest_on_top():
    figure = plots.scores({"k 1": 0.25, "k 5": 0.5}, caption="some digits")
    check_drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["k 5", "k 1"]
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.25]
    assert [text.get_text() for text in axis.texts] == ["50.0%", "25.0%"]
    assert "Rows: k 5; k 1" in figure.alt


def test_a_live_profile_is_redrawn_with_what_came_before():
    live = plots.LiveProfile()
    one = pd.DataFrame({"layer": [1, 2, 3], "norm": [1e-3, 1e-2, 1e-1]})
    first = live.png(one, label="one", residual=False, rate=0.1, earlier=[])
    assert live.line.get_color() == plots.PLAIN
    assert live.theory.get_ydata().tolist() == pytest.approx([1e-3, 1e-2, 1e-1])
    assert live.axis.get_ylim()[1] < 1
    deep = pd.DataFrame({"layer": range(1, 9), "norm": 5.0})
    second = live.png(one, label="one", residual=True, rate=None, earlier=[deep.assign(norm=1e-9), *[deep] * 4])
    assert live.line.get_color() == plots.RESIDUAL
    assert not live.theory.get_visible()
    assert 1e-9 < live.axis.get_ylim()[0] < 1e-3  # the oldest has gone
    assert live.axis.get_ylim()[1] > 5
    assert live.axis.get_xlim()[1] > 8
    assert live.png(one, label="one", residual=False, rate=0.1, earlier=[]) == first != second


@pytest.mark.parametrize("norms", [[0.0, 1e-3, np.inf], [np.nan] * 3, [0.0] * 3])
def test_a_live_profile_outlives_norms_that_have_no_logarithm(norms):
    live = plots.LiveProfile()
    assert live.png(
        pd.DataFrame({"layer": [1, 2, 3], "norm": norms}), label="one", residual=False, rate=0.5, earlier=[]
    )
    low, high = live.axis.get_ylim()
    assert 0 < low < high < np.inf


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


# Tables


def test_heatmap_shows_mean_and_spread_over_seeds(results):
    panels = {"Plain": {"normalization": "none"}, "Batch": {"normalization": "batch"}, "Both": {}}
    figure = plots.depth_width_heatmap(results, panels=panels)
    check_drawn(figure)
    text = text_of(figure)
    assert text.count("89.00\n± 1.00") == 4  # depth 1: two widths in two panels
    assert text.count("83.00\n± 1.00") == 4
    assert [axis.get_title("left") for axis in figure.axes[:3]] == list(panels)
    assert not figure.axes[3].axison
    assert any("some digits (builtin); n = 3 seeds; 3 epochs; an abacus; torch 2.0" in line for line in text)


def test_heatmap_of_single_runs_shows_no_spread(results):
    single = results[(results["seed"] == 0) & (results["normalization"] == "none")]
    assert {"88.00", "82.00"} < set(text_of(plots.depth_width_heatmap(single)))


def test_heatmap_spreads_its_colours_over_the_networks_that_learn(results):
    dead = results["width"].eq(16) & results["depth"].eq(4)
    results.loc[dead, "test_top1"] = 0.1135
    figure = plots.depth_width_heatmap(results[results["normalization"] == "none"])
    check_drawn(figure)
    cells, hatched = figure.axes[0].collections
    assert cells.get_clim() == pytest.approx((11, 22))  # error rates, in %
    assert cells.to_rgba(cells.get_array()).reshape(4, 4)[3, :3] == pytest.approx(to_rgb("#E4E4E4"), abs=0.01)
    assert hatched.get_hatch()
    assert len(hatched.get_paths()) == 1
    bar = figure.axes[1]
    assert "80" in [label.get_text() for label in bar.get_yticklabels()]  # an accuracy for an error of 20 %
    assert "hatched: up to twice chance" in bar.get_ylabel()
    assert bar.yaxis_inverted()


def test_heatmap_is_drawn_where_nothing_or_everything_is_learnt(results):
    for accuracy in (0.1, 1.0):
        check_drawn(plots.depth_width_heatmap(results.assign(test_top1=accuracy)))


def test_numbers_stand_out_from_their_cells():
    results = pd.DataFrame(
        [{"depth": depth, "width": 8, "seed": 0, "test_top1": 1 - 0.005 * 2**depth, **ORIGIN} for depth in range(1, 8)]
    )
    axis = plots.depth_width_heatmap(results).axes[0]
    cells = axis.collections[0]
    for text, face in zip(axis.texts, cells.to_rgba(cells.get_array().ravel()), strict=True):
        share = np.asarray(face[:3])
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        behind = linear @ [0.2126, 0.7152, 0.0722]
        front = {"black": 0.0, "white": 1.0}[text.get_color()]
        high, low = max(behind, front), min(behind, front)
        assert (high + 0.05) / (low + 0.05) > 4.5  # the least contrast that WCAG 2 allows


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
    assert texts == {"+2.00\n± 0.10": "bold", "+2.00\n± 1.00": "normal", "-3.00\n± 0.10": "bold"}
    assert axis.collections[0].get_clim() == pytest.approx((-3, 3))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("temperature", "weight of the teacher")


def test_gradient_heatmaps_share_one_scale():
    probes = pd.DataFrame(
        {"epoch": [1, 1, 2, 2], "layer": [1, 2, 1, 2], "kind": "weight", "norm": [1e-3, 1.0, 1e-2, 0.0]}
    )
    biases = probes.assign(kind="bias", norm=1e9)
    probes = pd.concat([probes, probes.assign(norm=1e-9)])  # the weights of a layer's normalization, which follow it
    figure = plots.gradient_heatmaps(
        {"plain": pd.concat([probes, biases], ignore_index=True), "residual": probes.assign(norm=100.0)}
    )
    check_drawn(figure)
    meshes = [axis.collections[0] for axis in figure.axes[:2]]
    assert {mesh.get_clim() for mesh in meshes} == {(1e-3, 100)}
    assert meshes[0].get_array().ravel().tolist() == [1e-3, 1e-2, 1.0, 0.0]
    assert figure.axes[0].get_ylim() == (0, 2)  # layer 1 at the bottom


def test_confusion_matrix_counts():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predictions = torch.tensor([0, 1, 1, 2, 0, 0])
    figure = plots.confusion_matrix(labels, predictions, ["a", "b", "c"])
    check_drawn(figure)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["1", "1", "0", "0", "1", "0", "2", "0", "1"]
    assert axis.collections[0].get_array().ravel().tolist() == [0, 1, 0, 0, 0, 0, 2, 0, 0]
    assert axis.get_ylabel() == "true class"
    many = torch.arange(30)
    assert not plots.confusion_matrix(many, many, list(map(str, range(30)))).axes[0].texts


# Lines


def test_accuracy_by_depth_draws_means_and_bands(results):
    lines = {"width 8": {"width": 8, "normalization": "none"}, "width 16": {"width": 16, "normalization": "none"}}
    figure = plots.accuracy_by_depth(results, lines, metric="test_top1")
    check_drawn(figure)
    (axis,) = figure.axes
    assert list(lines_of(axis)) == list(lines)
    for line, band in zip(lines_of(axis).values(), axis.collections, strict=True):
        assert list(line.get_xdata()) == pytest.approx([1, 4])
        assert list(line.get_ydata()) == pytest.approx([0.89, 0.83])
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((0.82, 0.90))
    assert axis.get_xscale() == "log"
    assert axis.get_ylabel() == "test accuracy (%)"


def test_accuracy_can_be_drawn_against_all_layers(results):
    layered = results.rename(columns={"depth": "layers"})
    figure = plots.accuracy_by_depth(layered, {"": {}}, metric="test_top1", depth="layers")
    assert "layers with weights" in figure.axes[0].get_xlabel()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "4"]
    assert figure.axes[0].get_legend() is None


def test_accuracy_is_drawn_against_any_column(results):
    figure = plots.accuracy_against(
        results, {"transfer": {"depth": 1}, "scratch": {"depth": 4}}, metric="test_top1", across="width", xlabel="units"
    )
    check_drawn(figure)
    (axis,) = figure.axes
    drawn = lines_of(axis)
    assert list(drawn["transfer"].get_ydata()) == pytest.approx([0.89, 0.89])
    assert list(drawn["scratch"].get_xdata()) == [8, 16]
    assert {to_rgb(line.get_color()) for line in drawn.values()}.isdisjoint(
        {to_rgb(plots.PLAIN), to_rgb(plots.RESIDUAL)}
    )
    assert (axis.get_xlabel(), axis.get_xscale()) == ("units", "linear")


def test_epochs_draw_means_over_seeds_in_the_palette(epochs):
    figure = plots.epochs(epochs, {"plain": {"residual": False}, "residual": {"residual": True}})
    check_drawn(figure)
    losses, accuracies = figure.axes
    drawn = lines_of(losses)
    assert list(drawn["plain"].get_ydata()) == pytest.approx([2.1, 1.1, 2 / 3 + 0.1])
    assert to_rgb(drawn["plain"].get_color()) == to_rgb(plots.PLAIN)
    assert to_rgb(drawn["residual"].get_color()) == to_rgb(plots.RESIDUAL)
    assert any(list(line.get_ydata()) == pytest.approx([0.47, 0.57, 0.67]) for line in accuracies.lines)
    assert "n = 3 seeds" in " ".join(text_of(figure))


def test_gradient_profiles_are_geometric_means_with_theory_dotted():
    profile = pd.DataFrame({"layer": [1, 2, 1, 2], "norm": [1.0, 10.0, 100.0, 10.0], "seed": [0, 0, 1, 1]})
    figure = plots.gradient_profiles({"plain": profile}, rates={"plain": 0.5, "not drawn": 2.0})
    check_drawn(figure)
    (axis,) = figure.axes
    drawn = lines_of(axis)
    assert drawn["plain"].get_ydata().tolist() == pytest.approx([10, 10])
    assert drawn["theory"].get_ydata().tolist() == pytest.approx([5, 10])
    assert drawn["theory"].get_linestyle() == ":"
    assert axis.get_yscale() == "log"
    (alone,) = plots.gradient_profiles({"plain": profile}, rates={"not drawn": 2.0}, what="x").axes
    assert list(lines_of(alone)) == ["plain"]
    assert alone.get_ylabel() == "gradient norm with respect to\nx"


def test_lesions_and_correlations_draw_a_line_a_network():
    study = pd.DataFrame({"dropped": [0, 2, 3], "top1": [0.9, 0.5, 0.6]})
    figure = plots.lesions({"plain": study, "residual": study}, classes=4)
    check_drawn(figure)
    (axis,) = figure.axes
    assert list(lines_of(axis)) == ["plain", "residual"]
    assert axis.lines[0].get_ydata().tolist() == [0.5, 0.6]
    wholes = [line for line in axis.lines if line.get_linestyle() == "--" and list(line.get_ydata()) == [0.9, 0.9]]
    assert {to_rgb(line.get_color()) for line in wholes} == {to_rgb(plots.PLAIN), to_rgb(plots.RESIDUAL)}
    assert axis.texts[0].xy == (1, 0.25)


# Points


def test_accuracies_draw_a_row_a_setting(results):
    rows = {"residual, depth 4": {"depth": 4}, "plain, depth 1": {"depth": 1}}
    figure = plots.accuracies(results, rows, metric="test_top1", lines={"teacher": 0.97})
    check_drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(rows)
    runs = [np.unique(points.get_offsets(), axis=0) for points in axis.collections]
    assert runs[0] == pytest.approx(np.array([[0.82, 0], [0.83, 0], [0.84, 0]]))
    dots = [(line.get_xdata(), line.get_color()) for line in axis.lines if line.get_marker() == "D"]
    means = {xs[np.isfinite(xs)][0]: colour for xs, colour in dots if np.isfinite(xs).any()}
    assert [*means] == pytest.approx([0.83, 0.89])
    assert [to_rgb(colour) for colour in means.values()] == [to_rgb(plots.RESIDUAL), to_rgb(plots.PLAIN)]
    spread = results[results["depth"] == 4]["test_top1"].std()
    bars = [list(line.get_xdata()) for line in axis.lines if line.get_marker() == "None"]
    assert [0.83 - spread, 0.83 + spread] == pytest.approx(bars[0])
    assert bars[-1] == [0.97, 0.97]
    assert [text.get_text() for text in axis.texts] == ["teacher"]


def test_groups_are_sorted_by_what_the_first_method_keeps():
    rows = [
        {"group": group, "seed": seed, "frozen": frozen + seed / 100, "transfer": full}
        for group, frozen, full in (("trees", 0.2, 0.8), ("fish", 0.3, 0.4), ("people", 0.1, 0.2))
        for seed in (-1, 0, 1)
    ]
    figure = plots.accuracies_by_group(pd.DataFrame(rows), ["frozen", "transfer"])
    check_drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["trees", "people", "fish"]
    assert axis.get_ylim() == (-0.5, 2.5)  # the lowest at the bottom
    means = {to_rgb(line.get_color()): line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 3}
    assert means[to_rgb(style.FAMILIES["frozen"])] == pytest.approx([0.2, 0.1, 0.3])
    assert means[to_rgb(style.FAMILIES["transfer"])] == pytest.approx([0.8, 0.2, 0.4])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["frozen", "transfer"]


def test_a_ladder_numbers_its_rungs(results):
    timed = results.assign(seconds=100.0 * results["depth"])
    timed["test_flips_top1"] = (timed["test_top1"] + 0.01).where(timed["depth"] == 4)
    timed["residual"] = timed["depth"] == 4
    figure = plots.ladder(timed, {"plain recipe": {"depth": 1}, "better": {"depth": 4}})
    check_drawn(figure)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["plain recipe  1", "better  2"]
    filled = [line for line in left.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    assert [line.get_xdata()[0] for line in filled] == pytest.approx([0.89, 0.83])
    assert [line.get_color() for line in filled] == [plots.PLAIN, plots.RESIDUAL]
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in hollow] == pytest.approx([0.84])
    assert right.get_xlabel() == "training (seconds)"
    assert {text.get_text() for text in right.texts} == {"1", "2"}


def test_a_ladder_writes_the_numbers_of_rungs_in_one_place_side_by_side(results):
    alike = results.assign(seconds=100.0 + results["depth"], residual=True, test_flips_top1=np.nan)
    rungs = {"one": {"depth": 1}, "the same again": {"depth": 1}, "four": {"depth": 4}}
    right = plots.ladder(alike, rungs).axes[1]
    assert [text.get_text() for text in right.texts] == ["1 2", "3"]


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


# Images


def test_image_grid_marks_what_is_wrong(digits):
    images, labels = digits.test.images[:3], digits.test.labels[:3]
    predictions = labels.clone()
    predictions[1] = (labels[1] + 1) % 10
    figure = plots.image_grid(
        images, labels, digits.classes, predictions=predictions, confidences=torch.tensor([1.0, 0.5, 0.9])
    )
    check_drawn(figure)
    axis = figure.axes[0]
    titles = [text.get_text() for text in axis.texts]
    assert ["✗" in title for title in titles] == [False, True, False]
    assert [text.get_fontweight() for text in axis.texts] == ["normal", "bold", "normal"]
    assert "50.0%" in titles[1]
    assert figure.alt == "3 images with their labels and predictions."
    alone = plots.image_grid(images, labels, digits.classes)
    assert [text.get_text() for text in alone.axes[0].texts] == [digits.classes[label] for label in labels]


def test_activation_maps_mark_what_is_wrong():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    labels, predictions = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    figure = plots.activation_maps(images, torch.randn(3, 4, 4), labels, predictions, ["cat", "dog"])
    check_drawn(figure)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["is cat\n✓ cat", "is dog\n✓ dog", "is dog\n✗ cat"]
    shown = figure.axes[3].images[1]
    assert shown.get_clim()[0] == -shown.get_clim()[1]


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


def test_loss_surfaces_share_their_levels():
    grid = [(x, y) for x in np.linspace(-1, 1, 5) for y in np.linspace(-1, 1, 5)]
    bowl = pd.DataFrame([{"x": x, "y": y, "loss": 0.1 + x**2 + y**2} for x, y in grid])
    steep = bowl.assign(loss=20 * bowl["loss"])
    figure = plots.loss_surfaces({"plain": steep, "residual": bowl}, caption="some pictures")
    check_drawn(figure)
    left, right, bar = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("plain", "residual")
    assert left.collections[0].get_clim() == right.collections[0].get_clim()
    assert isinstance(left.collections[0].norm, LogNorm)
    assert "nats" in bar.get_ylabel()
    assert {"0.3", "1", "3"} < {label.get_text() for label in bar.get_yticklabels()}
