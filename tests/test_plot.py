import numpy as np
import pytest
import torch

from latentaug import FTN, CooperativeModel, RandomChannelMask, TargetedSpatialMask

pytest.importorskip("matplotlib")

from latentaug.plot import plot_hard_examples

TITLES = [
    "image and labels",
    "image saliency",
    "mask",
    "hard image",
    "prediction",
    "shape saliency",
    "mask",
    "hard segmentation",
    "refined",
]


def tensors(spatial=(16, 24), classes=3, grid=(4, 6), channels=10, factor=None):
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return {
        "images": rand(2, 1, *spatial),
        "labels": (rand(2, *spatial) * classes).long(),
        "image_saliency": rand(2, channels, *grid) - 0.5,
        "image_factor": (rand(2, channels, *[1] * len(grid)) > 0.5).float() if factor is None else factor,
        "hard_images": rand(2, 1, *spatial),
        "logits": rand(2, classes, *spatial),
        "shape_saliency": rand(2, channels, *grid) - 0.5,
        "shape_factor": (rand(2, 1, *grid) > 0.5).float(),
        "hard_segmentation": rand(2, classes, *spatial),
        "refined": rand(2, classes, *spatial),
    }


def shown(figure, row, column):
    """Return the top picture of a panel, with NaN where nothing is drawn."""
    axes = figure.axes[row * len(TITLES) + column]
    return np.ma.filled(np.ma.asarray(axes.images[-1].get_array(), dtype=float), np.nan)


def test_every_panel_shows_its_tensor():
    given = tensors()
    figure = plot_hard_examples(**given)

    assert [axes.get_title() for axes in figure.axes[: len(TITLES)]] == TITLES
    for row in range(2):
        np.testing.assert_allclose(shown(figure, row, 3), given["hard_images"][row, 0])
        np.testing.assert_allclose(shown(figure, row, 1), given["image_saliency"][row].mean(0), rtol=1e-6)
        np.testing.assert_allclose(shown(figure, row, 6), given["shape_factor"][row, 0])
        for column, name in ((4, "logits"), (7, "hard_segmentation"), (8, "refined")):
            labels = given[name][row].argmax(0).double().numpy()
            np.testing.assert_array_equal(shown(figure, row, column), np.where(labels > 0, labels, np.nan))


def test_a_channel_mask_has_a_cell_for_each_channel_and_nothing_else():
    given = tensors(channels=10)
    cells = shown(plot_hard_examples(**given), 0, 2)
    assert cells.size == 12
    np.testing.assert_array_equal(cells.ravel()[:10], given["image_factor"][0].ravel())
    assert np.isnan(cells.ravel()[10:]).all()


def test_all_panels_cover_the_image_so_that_titles_stand_at_one_height():
    figure = plot_hard_examples(**tensors(channels=7, grid=(3, 5)))
    figure.draw_without_rendering()
    extents = {tuple(axes.images[-1].get_extent()) for axes in figure.axes}
    assert extents == {(-0.5, 23.5, 15.5, -0.5)}
    assert len({round(axes.title.get_window_extent().y0) for axes in figure.axes[: len(TITLES)]}) == 1


def test_of_volumes_the_middle_slice_is_drawn():
    given = tensors(spatial=(6, 16, 16), grid=(3, 4, 4))
    figure = plot_hard_examples(**given)
    np.testing.assert_allclose(shown(figure, 0, 3), given["hard_images"][0, 0, 3])
    np.testing.assert_allclose(shown(figure, 0, 1), given["image_saliency"][0].mean(0)[1], rtol=1e-6)


def test_tokens_are_laid_out_like_the_image():
    given = tensors(grid=(24,), factor=torch.ones(2, 10, 1))
    assert shown(plot_hard_examples(**given), 0, 1).shape == (4, 6)


def test_ignored_pixels_are_left_transparent():
    given = tensors()
    given["labels"][0, :4] = -100
    assert np.isnan(shown(plot_hard_examples(**given), 0, 0)[:4]).all()


def test_samples_bound_the_rows():
    assert len(plot_hard_examples(**tensors(), samples=1).axes) == len(TITLES)


def test_signals_are_refused():
    with pytest.raises(ValueError, match=r"needs images \[B, C, H, W\] or \[B, C, D, H, W\]; got \(2, 1, 16\)"):
        plot_hard_examples(**tensors(spatial=(16,), grid=(4,)))


@pytest.mark.parametrize("masker", [RandomChannelMask(), TargetedSpatialMask(annealing=0)])
def test_what_a_cooperative_model_explains_can_be_drawn_and_saved(masker, tmp_path):
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
    coop = CooperativeModel(FTN(width=4, depth=2), num_classes=4, example=images, augment=masker)
    figure = plot_hard_examples(images, labels, **coop.explain(images, labels)._asdict())
    figure.savefig(tmp_path / "hard.png")
    assert (tmp_path / "hard.png").read_bytes().startswith(b"\x89PNG")


def test_regions_are_drawn_over_each_other():
    given = tensors()
    given["labels"] = torch.zeros(2, 3, 16, 24).long()
    given["labels"][:, 0, :8] = 1
    given["labels"][:, 2, :4] = 1
    figure = plot_hard_examples(**given)
    drawn = figure.axes[0].images[1].get_array()
    assert (drawn[:4] == 3).all()
    assert (drawn[4:8] == 1).all()
    assert drawn.mask[8:].all()
    predicted = figure.axes[4].images[1].get_array()
    expected = (given["logits"][0] > 0) * torch.tensor([1, 2, 3])[:, None, None]
    assert np.array_equal(predicted.data, expected.amax(0).numpy())
