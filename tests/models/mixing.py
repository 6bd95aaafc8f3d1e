"""Little nets that read, after the code, what was computed before it, in every way that we could think of.

A transform that mixes samples must reach all of it. Each net says whether that is done exactly, or refused and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.case import Case
from tests.models.parts import Base, conv


@dataclass(frozen=True)
class MixCase(Case):
    """A net, and what a refusal says; None where mixing is exact."""

    refused: str | None = None
    calls: int = 1  # of the layer
    samples: int = 3


CASES: dict[str, MixCase] = {}


def reads(refused: str | None = None, layer: str = "code", **options: Any) -> Callable[[Any], Any]:
    """Enter a net into the table."""

    def enter(build: Any) -> Any:
        CASES[build.__name__] = MixCase(build, layer, refused=refused, **options)
        return build

    return enter


class Skip(Base):
    """The skip connection that most nets below read in a way of their own, and a code that is as large."""

    def __init__(self) -> None:
        super().__init__()
        self.code = conv(4, 4)
        self.head = conv(4, 2)

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        out: Tensor = self.head(self.merge(F.relu(self.code(skip)), skip, x))
        return out


# Read as it is, or through views ----------------------------------------------------------------------------------


@reads()
class Sum(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return z + skip


@reads()
class ImageToo(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return torch.cat([z[:, :1], skip[:, :2], x[:, :1]], 1)


@reads()
class ManyOperators(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        z = 1 - skip * z / (2 + skip.square()) ** 0.5
        z = torch.where(skip > 0, z, -skip)
        z = torch.addcmul(z, skip, skip, value=0.1).clamp(min=-skip.abs())
        return torch.einsum("bchw,bdhw->bchw", z, skip)


@reads()
class AttributesOfViews(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return z + skip.mT.mT + skip.data.detach() + skip[..., 2:3].expand_as(z)


@reads()
class ChunksTakenBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        a, b = skip.chunk(2, 1)
        flat = skip.flatten(2)
        z = self.code(skip)
        return self.head(torch.cat([a, b], 1) * z + flat.view_as(z))


@reads()
class DetachedBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        data, detached, copied = skip.data, skip.detach(), skip.clone()
        z = self.code(skip)
        return self.head(z * data + detached + copied)


@reads()
class ChannelsLastBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x).to(memory_format=torch.channels_last)
        last = skip.permute(0, 2, 3, 1)
        z = self.code(skip)
        return self.head(z + skip + last.permute(0, 3, 1, 2))


@reads()
class SamplesOneByOne(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return torch.stack([one * other for one, other in zip(z, skip, strict=True)])


@reads()
class PerSampleNumbersAsATensor(Skip):
    """Each a single number by itself, but stacked before the code."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        scales = torch.stack([sample.abs().mean() for sample in skip])
        z = self.code(skip / scales.view(-1, 1, 1, 1))
        return self.head(z * scales.view(-1, 1, 1, 1))


@reads()
class InstanceNormUndone(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        mean, deviation = skip.mean((2, 3), keepdim=True), skip.std((2, 3), keepdim=True)
        return self.head(self.code((skip - mean) / deviation) * deviation + mean)


@reads()
class WrittenIntoABuffer(Skip):
    """By slices, and by `out=`."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        buffer = skip.new_zeros(len(x), 8, *skip.shape[2:])
        buffer[:, :4] = skip
        with torch.no_grad():
            torch.mul(skip, 2, out=buffer[:, 4:])
        z = self.code(skip)
        return self.head(z * buffer[:, 4:])


@reads()
class ListThatIsPopped(Skip):
    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.code(features[0]))
        return self.head(features.pop() * features.pop())


@reads()
class Closure(Skip):
    """Features that are computed when they are asked for: what is mixed is what they are computed from."""

    def forward(self, x: Tensor) -> Tensor:
        def again() -> Tensor:
            stem: Tensor = self.stem(x)
            return stem

        return self.head(self.code(again()) * again())


@reads()
class EarlyOutputs(Skip):
    """What was computed before the code is returned, beside a loss."""

    def forward(self, x: Tensor) -> Any:
        skip = self.stem(x)
        z = self.code(skip)
        return {"logits": self.head(z + skip), "features": [x, skip], "penalty": skip.square().mean()}


@reads()
class Attention(Skip):
    """A fused kernel, and one in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        q, k = z.flatten(2).mT, skip.flatten(2).mT
        attended = F.scaled_dot_product_attention(q, k, k) + self.attention(q, k, k, need_weights=False)[0]
        return attended.mT.view_as(z)


@reads()
class MapOfTheFunctional(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), -1, -1), list(x.shape), align_corners=False)
        return z + F.grid_sample(skip, grid + 0.1 * z[:, :2].movedim(1, -1), align_corners=False)


@reads()
class TrainedNorms(Skip):
    """One batch norm before the code, one after it, and one that is used on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.both = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.both(self.before(self.stem(x)))
        return self.head(self.both(self.after(self.code(skip) + skip)))


@reads()
class TrackedInstanceNorm(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.both(self.stem(x))
        return self.head(self.both(self.code(skip) + skip))


@reads()
class Dropouts(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = F.dropout(self.stem(x), 0.3, self.training)
        return self.head(F.dropout2d(self.code(skip), 0.3, self.training) * skip)


@reads()
class FrozenEncoder(Skip):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            skip = self.stem(x)
            z = self.code(skip)
        return self.head(z + skip)


@reads()
class GateWithoutGradients(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = skip.mean(1, keepdim=True).sigmoid()
        return z * gate + skip


@reads()
class PositionsByTheWay(Skip):
    """What does not come of the inputs is no sample's, whatever its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.linspace(0, 1, 4, dtype=x.dtype)
        skip = self.stem(x) + self.positions
        return self.head(self.code(skip) * scale.view(1, -1, 1, 1) + self.positions)


@reads()
class TruthOfAComparison(Skip):
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 100:
            x = x / 100
        return self.head(self.code(self.stem(x)) + x[:, :1])


@reads()
class Spectrum(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        spectrum = torch.fft.rfft2(skip)
        z = self.code(skip)
        return self.head(torch.fft.irfft2(torch.fft.rfft2(z) * spectrum))


@reads("a tensor of sparse_coo of shape")
class SparseSkip(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        sparse = skip.flatten(1).to_sparse()
        z = self.code(skip)
        return self.head(z + torch.sparse.mm(sparse, torch.eye(sparse.shape[1], dtype=x.dtype)).view_as(skip))


@reads()
class GradientOfTheDecoder(Skip):
    """The net differentiates as it goes."""

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad((z.square() * skip).sum(), z, create_graph=True)
        return z + slope


# Changed in place -------------------------------------------------------------------------------------------------


@reads()
class InPlaceAfter(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        other = skip * 1
        z = self.code(skip)
        other += z
        other[:, 0] = 0
        other.mul_(0.5).relu_()
        return self.head(other * z)


@reads()
class InPlaceStatement(Skip):
    """The result of the activation is ignored, as it is in the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        other = skip * 1
        z = self.code(skip)
        F.relu(other, inplace=True)
        return self.head(z + other)


@reads("in place and reads other views")
class InPlaceSeenByAView(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x) * 1
        view = skip[:, :4]
        z = self.code(skip)
        skip.relu_()
        return self.head(z + view)


@reads("in place and reads other views")
class InPlaceSeenByItsData(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        data = skip.data
        z = self.code(skip)
        data.mul_(0.5)
        return self.head(z + skip)


@reads("in place and reads other views")
class ViewReadBeforeAndAfter(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x) * 1
        view = skip.view_as(skip)
        z = self.code(skip) + view
        skip.relu_()
        return self.head(z + view)


# Numbers that are no samples --------------------------------------------------------------------------------------


@reads(r"a tensor of int64 of shape")
class Unpooling(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip, places = F.max_pool2d(self.stem(x), 2, return_indices=True)
        return self.head(F.max_unpool2d(self.code(skip), places, 2))


@reads(r"a tensor of bool of shape")
class MaskTakenBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        inside = x[:, :1] > 0
        return self.head(self.code(skip).masked_fill(inside, 0))


@reads(r"a tensor of shape \(4,\) from before it, whose first axis is not the batch")
class BatchStatistics(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        mean = skip.mean((0, 2, 3))
        return self.head(self.code(skip) + mean.view(1, -1, 1, 1))


@reads(r"a tensor of shape \(\) from before it")
class BatchMean(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        mean = skip.mean()
        return self.head(self.code(skip) - mean)


@reads(r"a tensor of shape \(\) from before it")
class NumbersStackedAfter(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        scales = [sample.abs().mean() for sample in skip]
        return self.head(self.code(skip) * torch.stack(scales).view(-1, 1, 1, 1))


@reads("reads numbers out of what it computes before the code, by item")
class NumbersOfPython(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        scales = [sample.abs().mean().item() for sample in skip]
        return self.head(torch.stack([one * scale for one, scale in zip(self.code(skip), scales, strict=True)]))


@reads("by tolist")
class NumbersInAList(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        scales = torch.tensor(skip.abs().mean((1, 2, 3)).tolist(), dtype=x.dtype)
        return self.head(self.code(skip) * scales.view(-1, 1, 1, 1))


@reads("by numpy")
class NumbersOfNumPy(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        copied = torch.from_numpy(skip.detach().numpy().copy())
        return self.head(self.code(skip) + copied)


@reads("by float")
class NumbersByFloat(Skip):
    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.abs().max())
        return self.head(self.code(self.stem(x / scale)) * scale)


@reads()
class NumPyAfter(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return z + torch.from_numpy(skip.detach().numpy() * 2)


# Axes that are no batch -------------------------------------------------------------------------------------------


class SequenceFirst(Skip):
    """Tokens [N, B, C], as nn.TransformerEncoder takes them by default."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 4, self.stride, self.stride)
        self.layer = nn.TransformerEncoderLayer(4, 1, 8, dropout=0)
        self.code = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(4, 4, self.stride, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.down(self.stem(x))
        tokens = grid.flatten(2).permute(2, 0, 1)
        memory = self.layer(tokens)
        z = self.code(memory.transpose(0, 1))
        merged = z.transpose(0, 1) + memory
        out: Tensor = self.head(self.up(merged.permute(1, 2, 0).view_as(grid)))
        return out


@reads(r"a tensor of shape \(16, \d, 4\) from before it, whose first axis is not the batch")
class TokensFirst(SequenceFirst):
    pass


@reads(r"a tensor of shape \(4, 2, 4\) from before it, whose first axis is not the batch of 2", samples=4)
class AsManyTokensAsSamples(SequenceFirst):
    stride = 8


@reads(r"a tensor of shape \(4,\) from before it, whose first axis is not the batch of 2", samples=4)
class AsManyChannelsAsSamples(BatchStatistics):
    pass


@reads(r"a tensor of shape \(2, 4, 4\) from before it, whose first axis is not the batch of 4", samples=2)
class TwoTokensTwoSamples(SequenceFirst):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x)[:, :, 0, :2].permute(2, 0, 1)
        z = self.code(tokens.transpose(0, 1)).transpose(0, 1) + tokens
        return self.head(self.stem(x) * z.permute(1, 2, 0)[..., None].mean(2, keepdim=True))


@reads(r"a code of \d+ rows for \d images, so that rows are no samples")
class WindowsAsSamples(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        batch, channels, height, width = skip.shape
        windows = skip.view(batch, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        z = self.code(windows).view(batch, 2, 2, channels, height // 2, width // 2).permute(0, 3, 1, 4, 2, 5)
        return self.head(z.reshape(skip.shape) + skip)


@reads(r"whose first axis is not the batch")
class WindowsOfTheSkip(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        windows = skip.unfold(2, 8, 8).flatten(0, 1)
        z = self.code(skip)
        return self.head(z + windows.mean().view(1, 1, 1, 1) + windows.view(len(x), 4, 2, 16, 8).sum())


@reads(r"fails on \d samples in place of \d")
class FixedBatch(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return (z + skip).view(3, 4, 16, 16)


@reads(calls=2)
class CodeTwice(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.head(self.code(self.code(skip)) + skip)


# Unseen, or seen again in the backward pass -----------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, skip: Tensor) -> Tensor:
        ctx.save_for_backward(z, skip)
        return z * skip

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z, skip = ctx.saved_tensors
        return gradient * skip, gradient * z


class WithItsContextLater(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, skip: Tensor) -> Tensor:
        return z * skip

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z, skip = ctx.saved_tensors
        return gradient * skip, gradient * z


class KeepsForLater(torch.autograd.Function):
    """Reads the skip in the backward pass only."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, skip: Tensor) -> Tensor:
        ctx.save_for_backward(skip)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class KeepsAsAnAttribute(KeepsForLater):
    @staticmethod
    def forward(ctx: Any, z: Tensor, skip: Tensor) -> Tensor:
        ctx.kept = [skip]
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.kept[0], None


class PassesOn(torch.autograd.Function):
    """Reads the skip neither forwards nor backwards, but sends it a gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, skip: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, -gradient


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


OWN_BACKWARD = "checkpointed, or in an autograd function of its own|gives .*Backward what was computed before the code"


@reads(OWN_BACKWARD)
class OwnFunction(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = Doubled.apply(z, skip)
        return merged


@reads(OWN_BACKWARD)
class OwnFunctionWithItsContextLater(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = WithItsContextLater.apply(z, skip)
        return merged


@reads(OWN_BACKWARD)
class OwnFunctionThatKeeps(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = KeepsForLater.apply(z, skip)
        return merged


@reads(OWN_BACKWARD)
class OwnFunctionThatKeepsTheImage(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = KeepsForLater.apply(z, x[:, :1] if z is None else x)
        return merged[:, :4]

    def forward(self, x: Tensor) -> Tensor:
        z = self.code(self.stem(x))[:, :3] * 1
        return self.head(F.pad(self.merge(z, z, x), (0, 0, 0, 0, 0, 1)))


@reads(OWN_BACKWARD)
class OwnFunctionThatKeepsAnAttribute(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = KeepsAsAnAttribute.apply(z, skip)
        return merged


@reads(OWN_BACKWARD)
class OwnFunctionThatPassesOn(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = PassesOn.apply(z, skip)
        return merged


@reads()
class OwnFunctionOfTheCode(Skip):
    """Of the code itself, and of what was read of the skip."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        z = Reversed.apply(self.code(skip))
        return self.head(Doubled.apply(z, skip + 1))


@reads()
class OwnFunctionBefore(Skip):
    """What it returned comes of the image as anything else does."""

    def forward(self, x: Tensor) -> Tensor:
        skip = Doubled.apply(Reversed.apply(self.stem(x)), self.stem(x))
        return self.head(self.code(skip) + skip)


@reads(OWN_BACKWARD)
class Checkpointed(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = checkpoint(torch.mul, z, skip, use_reentrant=False)
        return merged


@reads(OWN_BACKWARD)
class CheckpointedSecondRead(Skip):
    """The skip was read outside first."""

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = checkpoint(lambda z: z * skip, z + skip, use_reentrant=False)
        return merged


@reads(OWN_BACKWARD)
class CheckpointedReentrantly(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = checkpoint(torch.mul, z, skip, use_reentrant=True)
        return merged


@reads(OWN_BACKWARD)
class CheckpointedWithOtherHooks(Skip):
    """The innermost hooks on saved tensors are not those of checkpointing."""

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        def saving(z: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return z * skip

        merged: Tensor = checkpoint(saving, z, use_reentrant=False)
        return merged


@reads()
class CheckpointedBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = checkpoint(self.stem, x, use_reentrant=False)
        return self.head(self.code(skip) + skip)


@reads()
class CheckpointedOfTheCode(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.head(checkpoint(torch.tanh, self.code(skip), use_reentrant=False) + skip)


@reads("checkpointed")
class CodeWithinACheckpoint(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.head(checkpoint(lambda skip: self.code(skip) + skip, skip, use_reentrant=False))


@reads("by other views|a tensor of shape")
class GoesOnAfterARefusal(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        mean = skip.mean((0, 2, 3))
        z = self.code(skip)
        try:
            z = z + mean.view(1, -1, 1, 1)
        except RuntimeError:
            z = z + 1
        return self.head(z)


class Scripted(nn.Module):
    def forward(self, z: Tensor, skip: Tensor) -> Tensor:
        return torch.relu(z) * skip


@reads("unseen, as scripted code does")
class ScriptedDecoder(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.jit.script(Scripted())

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = self.decoder(z, skip)
        return merged


@reads()
class ScriptedEncoder(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.jit.script(Scripted())

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encoder(self.stem(x), self.stem(x))
        return self.head(self.code(skip) + skip)


@reads("unseen, as scripted code does")
class Vectorised(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = torch.func.vmap(lambda z, skip: z * skip)(z, skip)
        return merged


@reads()
class VectorisedBefore(Skip):
    def forward(self, x: Tensor) -> Tensor:
        skip = torch.func.vmap(lambda one: one.square())(self.stem(x))
        return self.head(self.code(skip) + skip)


@reads()
class CompiledDecoder(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.compile(Scripted(), backend="eager")

    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        merged: Tensor = self.decoder(z, skip)
        return merged
