"""Lightning: a `CooperativeModel` as a LightningModule, and one-pass transforms for any LightningModule."""

from latentaug.integrations.lightning.callback import LatentAugmentation
from latentaug.integrations.lightning.module import CooperativeModule

__all__ = ["CooperativeModule", "LatentAugmentation"]
