import math

import pytest
import torch
from torch import nn

from latentaug.layout import CHANNELS_LAST, Layout
from latentaug.nets.blocks import Decoder, Encoder
from latentaug.nets.functional import crop, one_hot, to_probabilities
from latentaug.nets.heads import CodeDecoupler, ReconstructionHead, ShapePrior


def parameters_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


class TestCodeDecoupler:
    @pytest.mark.parametrize("size", [(9,), (5, 6), (3, 4, 5)])
    def test_keeps_the_shape_and_is_never_negative(self, size):
        code = torch.randn(2, 8, *size)
        shape_code = CodeDecoupler(8, spatial_dims=len(size))(code)
        assert shape_code.shape == code.shape
        assert shape_code.min() == 0
        assert shape_code.max() > 0


class TestReconstructionHead:
    @pytest.mark.parametrize(
        ("channels", "grid", "stride", "size"),
        [
            (128, (4, 4), (16, 16), (64, 64)),
            (64, (2, 3), (32, 32), (64, 96)),
            (7, (4, 7), (16, 16), (63, 100)),  # the last stride hangs over
            (7, (3, 6), (16, 16), (63, 100)),  # a model that rounds down
            (40, (5, 4), (14, 14), (70, 56)),
            (12, (4, 4), (12, 12), (48, 48)),
            (12, (3, 4), (3, 5), (9, 20)),
            (6, (8, 8), (1, 1), (8, 8)),
            (200, (8, 8), (1, 1), (8, 8)),
            (16, (16,), (8,), (128,)),
            (8, (3, 4, 4), (1, 4, 4), (3, 16, 16)),
            (8, (2, 3, 4), (4, 8, 8), (8, 24, 32)),
        ],
    )
    def test_gives_the_size_asked_for(self, channels, grid, stride, size):
        head = ReconstructionHead(channels, 2, stride, width=4)
        image = head(torch.rand(2, channels, *grid), size)
        assert image.shape == (2, 2, *size)
        assert image.min() >= 0
        assert image.max() <= 1

    def test_tokens_and_channels_last_are_only_other_views(self):
        code = torch.rand(2, 6, 4, 5)
        head = ReconstructionHead(6, 1, (8, 8), width=2).eval()
        expected = head(code, (32, 40))

        head.layout = CHANNELS_LAST
        torch.testing.assert_close(head(code.movedim(1, -1), (32, 40)), expected)
        tokens = code.flatten(2).movedim(1, -1)
        torch.testing.assert_close(head(tokens, (32, 40)), expected)

        head.layout = Layout(channel_dim=-1, prefix_tokens=2)
        with_prefix = torch.cat([torch.full((2, 2, 6), 1e3), tokens], dim=1)
        torch.testing.assert_close(head(with_prefix, (32, 40)), expected)

    def test_tokens_of_a_model_that_rounds_down(self):
        head = ReconstructionHead(6, 1, (14, 14), width=2, layout=CHANNELS_LAST)
        assert head(torch.rand(2, 4 * 5, 6), (60, 75)).shape == (2, 1, 60, 75)

    def test_wrong_number_of_tokens_is_named(self):
        head = ReconstructionHead(6, 1, (8, 8), layout=CHANNELS_LAST)
        with pytest.raises(ValueError, match=r"needs 4 x 4 tokens .* got 17. Check `stride` and the prefix"):
            head(torch.rand(2, 17, 6), (32, 32))

    def test_equals_the_slow_way_in_the_papers_case(self):
        head = ReconstructionHead(128, 1, (16, 16), width=16).eval()
        x = torch.rand(1, 128, 3, 2)
        expected = x
        for block, width in zip(head.decoder.blocks, [64, 32, 16, 16], strict=True):
            assert isinstance(block.upsample, nn.ConvTranspose2d)
            assert block.upsample.kernel_size == block.upsample.stride == (2, 2)
            upsampled = block.upsample(expected)
            expected = nn.functional.leaky_relu(block.body(upsampled) + block.shortcut(upsampled), 0.2)
            assert expected.shape[1] == width
        expected = torch.sigmoid(head.decoder.projection(expected))
        torch.testing.assert_close(head(x, (48, 32)), expected)

    def test_image_range(self):
        code = 100 * torch.randn(2, 8, 8, 8)
        scaled = ReconstructionHead(8, 1, (4, 4), image_range=(-1, 3))
        image = scaled(code, (32, 32))
        assert -1 <= image.min() < 0
        assert 2 < image.max() <= 3
        scaled.image_range = None
        linear = scaled(code, (32, 32))
        torch.testing.assert_close(image, -1 + 4 * linear.sigmoid())

    @pytest.mark.parametrize("image_range", [(1, 0), (0, 0), (0, math.nan)])
    def test_empty_image_range(self, image_range):
        with pytest.raises(ValueError, match="image_range must be a pair"):
            ReconstructionHead(8, 1, (4, 4), image_range=image_range)

    def test_small_on_wide_codes(self):
        assert parameters_of(ReconstructionHead(2048, 3, (32, 32))) < 0.52e6
        assert parameters_of(ReconstructionHead(128, 1, (16, 16))) < 0.25e6

    def test_finer_axes_are_upsampled_deepest(self):
        head = ReconstructionHead(8, 1, (2, 8, 4), width=1)
        assert [block.upsample.stride for block in head.decoder.blocks] == [(2, 2, 2), (1, 2, 2), (1, 2, 1)]


class TestShapePrior:
    @pytest.mark.parametrize("size", [(33,), (16, 16), (17, 30), (8, 9, 20)])
    @pytest.mark.parametrize("num_classes", [1, 3])
    def test_any_size(self, size, num_classes):
        prior = ShapePrior(num_classes, width=2, depth=3, spatial_dims=len(size))
        logits = torch.randn(2, num_classes, *size)
        assert prior.refine(logits).shape == logits.shape

    @pytest.mark.parametrize(("num_classes", "soften"), [(1, torch.sigmoid), (3, lambda x: torch.softmax(x, 1))])
    def test_refine_reads_softened_probabilities(self, num_classes, soften):
        prior = ShapePrior(num_classes, width=2, depth=1, temperature=4.0).eval()
        logits = torch.randn(2, num_classes, 8, 8)
        torch.testing.assert_close(prior.refine(logits), prior(soften(logits / 4)))

    def test_an_image_more_leaves_the_others_alone(self):
        prior = ShapePrior(2, width=2, depth=2).eval()
        probabilities = torch.rand(3, 2, 9, 9)
        torch.testing.assert_close(prior(probabilities)[:1], prior(probabilities[:1]))


class TestEncoderAndDecoder:
    @pytest.mark.parametrize(
        ("depth", "encoder_widths", "decoder_widths"),
        [
            (1, [4, 32], [4]),
            (2, [4, 8, 32], [8, 4]),
            (3, [4, 8, 16, 32], [16, 8, 4]),
            (4, [4, 8, 16, 32, 32], [16, 8, 4, 4]),
            (5, [4, 8, 16, 32, 32, 32], [16, 8, 4, 4, 4]),
        ],
    )
    def test_widths(self, depth, encoder_widths, decoder_widths):
        encoder = Encoder(1, width=4, depth=depth, spatial_dims=1)
        decoder = Decoder(32, 1, [(2,)] * depth, width=4, spatial_dims=1)
        assert [encoder.stem[0].out_channels, *(b.shortcut.out_channels for b in encoder.blocks)] == encoder_widths
        assert [block.shortcut.out_channels for block in decoder.blocks] == decoder_widths
        assert decoder(encoder(torch.rand(2, 1, 64))).shape == (2, 1, 64)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_classes": 0}, "num_classes must be at least 1, which means one logit; got 0"),
            ({"num_classes": 3, "temperature": 0.0}, r"temperature must be positive; got 0\.0"),
        ],
    )
    def test_a_prior_of_nothing_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            ShapePrior(**options)

    def test_depth_zero_is_refused(self):
        with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
            Encoder(1, width=4, depth=0, spatial_dims=2)

    def test_initial_weights(self):
        encoder = Encoder(1, width=16, depth=4, spatial_dims=2)
        conv, norm = encoder.blocks[3].body[0], encoder.blocks[3].body[1]
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
        assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
        assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not norm.bias.any()

    def test_in_place_activations_change_no_input(self):
        encoder = Encoder(1, width=2, depth=2, spatial_dims=2)
        image = torch.randn(2, 1, 8, 8)
        before = image.clone()
        decoder = Decoder(16, 2, [(2, 2)] * 2, width=2, spatial_dims=2)
        code = encoder(image)
        kept = code.clone()
        decoder(code).sum().backward()
        assert torch.equal(image, before)
        assert torch.equal(code, kept)


class TestSmallFunctions:
    def test_repr_shows_what_the_submodules_do_not(self):
        head = ReconstructionHead(8, 1, (4, 4), width=1, layout=CHANNELS_LAST)
        assert "stride=(4, 4), image_range=(0.0, 1.0), layout=channels last" in repr(head)
        assert "num_classes=3, temperature=2.0" in repr(ShapePrior(3, width=1, depth=1))

    def test_crop_cuts_at_the_end_of_each_axis(self):
        image = torch.arange(24).view(1, 1, 4, 6)
        assert torch.equal(crop(image, (3, 5)), image[:, :, :3, :5])

    def test_probabilities(self):
        logits = torch.randn(2, 3, 4)
        torch.testing.assert_close(to_probabilities(logits).sum(1), torch.ones(2, 4))
        torch.testing.assert_close(to_probabilities(logits[:, :1]), 1 / (1 + (-logits[:, :1]).exp()))

    @pytest.mark.parametrize("num_classes", [1, 2, 4])
    @pytest.mark.parametrize("ignore_index", [-100, 0, 1, 255])
    def test_one_hot_by_a_slow_loop(self, num_classes, ignore_index):
        labels = torch.randint(max(num_classes, 2), (2, 3, 5))
        labels[0, 0, :2] = ignore_index
        expected = torch.zeros(2, num_classes, 3, 5)
        for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)):
            label = int(labels[b, i, j])
            if label == ignore_index:
                continue
            if num_classes == 1:
                expected[b, 0, i, j] = label
            else:
                expected[b, label, i, j] = 1
        hot = one_hot(labels, num_classes, ignore_index=ignore_index)
        assert torch.equal(hot, expected)
        assert hot.is_contiguous()

    def test_one_hot_takes_any_integer_type_and_gives_any_float_type(self):
        labels = torch.tensor([[0, 1]], dtype=torch.uint8)
        hot = one_hot(labels, 2, dtype=torch.float64)
        assert hot.dtype is torch.float64
        assert hot.tolist() == [[[1, 0], [0, 1]]]
