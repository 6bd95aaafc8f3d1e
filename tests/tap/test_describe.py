"""The table of codes that a user prints."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.discovery.codes import find_codes
from latentaug.tap.describe import Description, describe
from tests.models.parts import conv
from tests.models.searched.parts import Encoder, Net, images


def test_a_description_is_the_table_of_candidates() -> None:
    model = Net(Encoder())
    description = describe(model, images())
    assert isinstance(description, Description)
    assert [row.chosen for row in description.rows].count(True) == 1
    chosen = next(row for row in description.rows if row.chosen)
    assert str(chosen.location) == "encoder[2]"
    assert chosen.type == "Encoder"
    for row in description.rows:
        assert 0 <= row.saved <= 1
        assert row.influence is None or row.influence > 0
        assert row.leak is None or 0 <= row.leak <= 1
    names = [str(row.location) for row in description.rows]
    assert len(names) == len(set(names))
    assert {"encoder[1]", "encoder[2]", "up1"} <= set(names)
    head, columns, *rows = str(description).splitlines()
    assert head == "Net: * is the layer that layer=None taps"
    assert columns.split() == ["layer", "type", "shape", "layout", "stride", "saves", "influence", "leak"]
    assert len(rows) == len(description.rows)
    assert rows[0].split()[:4] == ["*", "encoder[2]", "Encoder", "2x32x8x12"]


def test_a_description_marks_the_code_that_images_are_decoded_from() -> None:
    stages = [nn.Conv2d(4 * 2**i if i else 3, 8 * 2**i, 3, 2, 1) for i in range(4)]
    model = nn.Sequential(*stages, nn.Upsample(scale_factor=16), nn.Conv2d(64, 2, 1))
    description = describe(model, images())
    marked = {str(row.location): (row.chosen, row.fine) for row in description.rows if row.chosen or row.fine}
    assert marked == {"3": (True, False), "2": (False, True)}
    assert marked.keys() == set(map(str, find_codes(model, images())))
    head, _, *rows = str(description).splitlines()
    assert head.endswith("+ the one that find_codes names for images")
    assert [row.split()[:2] for row in rows if row[0] == "+"] == [["+", "2"]]


def test_influence_is_the_share_of_the_output_that_a_zero_code_takes_away() -> None:
    model = Net(Encoder()).eval()
    row = next(row for row in describe(model, images()).rows if row.chosen)
    with torch.no_grad():
        logits = model(images()[:1])
        model.encoder.register_forward_hook(lambda module, args, output: [*output[:2], output[2] * 0])
        without = model(images()[:1])
    influence = float((without - logits).norm() / logits.norm())
    assert row.influence == pytest.approx(influence, rel=1e-5)
    assert row.leak == pytest.approx(max(0.0, 1 - influence), rel=1e-4)


def test_a_dead_signal_is_said_to_be_dead() -> None:
    model = Net(Encoder())
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.zero_()
    description = describe(model, images())
    row = next(row for row in description.rows if row.chosen)
    assert row.influence is None
    assert row.leak is None
    assert "n/a, signal dead: train first" in str(description)


def test_a_skip_that_nobody_reads_is_all_leak() -> None:
    class Unread(Net):
        def forward(self, x: Tensor) -> Tensor:
            code = self.encoder(x)[-1]
            return self.head(F.relu(self.up2(F.relu(self.up1(code)))))

    rows = {str(row.location): row for row in describe(Unread(Encoder()), images()).rows}
    assert rows["encoder[2]"].influence
    assert (rows["encoder[1]"].influence, rows["encoder[1]"].leak) == (0, 1)


def test_a_model_that_cannot_be_replayed_is_described_too() -> None:
    calls = itertools.count(1)

    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * next(calls)

    description = describe(Counts(Encoder()), images())
    row = description.rows[0]
    assert (str(row.location), row.saved, row.influence, row.leak) == ("encoder[2]", None, None, None)
    assert "cannot be replayed: LatentTap cannot replay Counts" in str(description)


def test_descriptions_of_large_models_stay_short() -> None:
    model = nn.Sequential(conv(3, 8, 2), *(conv(8, 8) for _ in range(30)), conv(8, 16, 2), nn.Upsample(scale_factor=4))
    strides = [row.location.stride for row in describe(nn.Sequential(model), images()).rows]
    assert strides == [(4, 4), (2, 2), (2, 2)]


def test_described_logits_count_alone() -> None:
    class WithNoise(Net):
        def forward(self, x: Tensor) -> Any:
            return {"masks": super().forward(x), "image": 1e3 * x}

    torch.manual_seed(0)
    model = WithNoise(Encoder())
    everything = next(row for row in describe(model, images()).rows if row.chosen)
    logits = next(row for row in describe(model, images(), logits=lambda out: out["masks"]).rows if row.chosen)
    assert logits.influence > 10 * (everything.influence or 0)


def test_a_description_is_shown_as_its_table_in_a_console_and_in_a_notebook() -> None:
    description = describe(Net(Encoder()), images())
    assert repr(description) == str(description)
    html = description._repr_html_()
    assert html.count("<tr>") == 1 + len(description.rows)
    cells = [f"<td>{cell}</td>" for cell in ("*", "encoder[2]", "Encoder", "2x32x8x12")]
    assert "".join(cells) in html
    row = dataclasses.replace(description.rows[0], type="<b>", saved=None, refusal="a < b")
    assert "<td>&lt;b&gt;</td>" in dataclasses.replace(description, rows=[row])._repr_html_()
