"""The network alone, some layers of which return changed codes while it trains, all in one pass.

Layers are called as in ResNet encoders of segmentation-models-pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping

from latentaug import DSU, DropBlock, EFDMix, LatentTransform, ManifoldMixup, MixStyle, RandomApply, RandomChannelMask
from study.methods.method import Method
from study.methods.steps import plain_backward


def in_one_pass(title: str, reference: str, latent: Mapping[str, LatentTransform]) -> Method:
    """Return the method that trains the network alone, with its codes changed on the way."""
    return Method(title, reference, plain_backward, latent=latent, heads=False, reconstructs=False, refines=False)


def at_levels(*levels: int, transform: LatentTransform) -> dict[str, LatentTransform]:
    """Put a transform at several levels of an encoder, where it samples anew each time."""
    return {f"encoder.layer{level}": transform for level in levels}


LATENT: Mapping[str, Method] = {
    "mixstyle": in_one_pass(
        "the network alone, early codes in a style between two samples of the batch",
        "Zhou et al., ICLR 2021, arXiv:2104.02008",
        at_levels(1, 2, transform=MixStyle()),
    ),
    "efdmix": in_one_pass(
        "the network alone, early codes with values between those of two samples of the batch, by rank",
        "Zhang et al., CVPR 2022, arXiv:2203.07740",
        at_levels(1, 2, transform=EFDMix()),
    ),
    "manifold-mixup": in_one_pass(
        "the network alone, codes and labels of two samples of the batch mixed",
        "Verma et al., ICML 2019, arXiv:1806.05236",
        at_levels(2, transform=ManifoldMixup()),
    ),
    "dsu": in_one_pass(
        "the network alone, the style of codes sampled around their own",
        "Li et al., ICLR 2022, arXiv:2202.03958",
        at_levels(1, 2, 3, 4, transform=DSU()),
    ),
    # The paper drops blocks of 7 x 7 from codes of 14 x 14 and 7 x 7. Images of 80 x 80 have such codes, of 10 x 10 and
    # 5 x 5, at levels 2 and 3; of level 4, 3 x 3, a block of the paper's kind would be all there is. So blocks are half
    # of a side wide.
    "dropblock": in_one_pass(
        "the network alone, blocks of deep codes dropped",
        "Ghiasi et al., NeurIPS 2018, arXiv:1810.12890",
        {"encoder.layer2": DropBlock(0.1, 5), "encoder.layer3": DropBlock(0.1, 3)},
    ),
    "latent-masks": in_one_pass(
        "the network alone, up to half of the channels of each code dropped, half of the time",
        "after Tompson et al., CVPR 2015, arXiv:1411.4280",
        at_levels(1, 2, 3, 4, transform=RandomApply(RandomChannelMask((0, 0.5)))),
    ),
}
"""Methods that cost about as much as the network alone."""
