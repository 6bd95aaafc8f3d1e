"""Every transform as a slow loop written from its formula: one sample and one channel at a time.

`ORACLES` holds for each class how an instance that acts is made, and the loop: `expected(code, kind, params)` returns
what the change with these parameters makes of a code in that layout, to be differentiated too. What is sampled comes
from `seeded()`, and the saliency of a code is `saliency_of(kind)`. So a loop can make the same numbers itself where the
parameters hold none, as those of masks do.
"""

from __future__ import annotations

from latentaug.augment.base import LatentTransform
from tests.support.oracles import adversarial, drop, image, intensity, mix, noise, style
from tests.support.oracles.compare import Errors, Oracle, divergence_of, errors, loss_of, saliency_of

__all__ = ["ORACLES", "Errors", "Oracle", "divergence_of", "errors", "loss_of", "saliency_of"]

ORACLES: dict[type[LatentTransform], Oracle] = {
    **style.ORACLES,
    **mix.ORACLES,
    **drop.ORACLES,
    **noise.ORACLES,
    **adversarial.ORACLES,
    **image.ORACLES,
    **intensity.ORACLES,
}
