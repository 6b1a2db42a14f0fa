"""Every key that does not fit is listed, once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevit.errors import UserError
from sparsevit.model import SparseSwin
from sparsevit.model.weights import fit_weights

LINE = re.compile(r"(missing|unknown|of another shape): +(\S+)(?:  (\S+), but (\S+) in the model)?")
names = st.builds(
    "{}.blocks.{}.{}".format, st.sampled_from(["stages.0", "stages.2"]), st.integers(0, 12), st.sampled_from("ab")
) | st.sampled_from(["norm.weight", "blocks", "x.blocks.y"])


def unfolded(details: tuple[str, ...]) -> dict[str, list[str]]:
    """All keys that the lines stand for, by what is said of them."""
    keys: dict[str, list[str]] = {}
    for line in details:
        match = LINE.fullmatch(line)
        assert match, line
        first, brace, rest = match[2].partition("{")
        numbers, _, last = rest.partition("}")
        for part in numbers.split(",") if brace else [""]:
            low, dash, high = part.partition("-")
            steps = range(int(low), int(high) + 1) if dash else [low]
            keys.setdefault(match[1], []).extend(f"{first}{number}{last}" for number in steps)
    return {what: sorted(found) for what, found in keys.items()}


@given(own=st.dictionaries(names, st.integers(1, 2)), given_=st.dictionaries(names, st.integers(1, 2)))
def test_all_keys_are_listed_once(own: dict[str, int], given_: dict[str, int]) -> None:
    model, weights = ({key: torch.ones(size) for key, size in one.items()} for one in (own, given_))
    expected = {
        "missing": sorted(own.keys() - given_.keys()),
        "unknown": sorted(given_.keys() - own.keys()),
        "of another shape": sorted(key for key in own.keys() & given_.keys() if own[key] != given_[key]),
    }
    expected = {what: keys for what, keys in expected.items() if keys}
    if not expected:
        assert fit_weights(weights, model, "a.pth") == weights
        return
    with pytest.raises(UserError) as caught:
        fit_weights(weights, model, "a.pth")
    assert unfolded(caught.value.details) == expected
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("a.pth is a checkpoint of another model; keys: ")
    for what, keys in expected.items():
        assert f"{len(keys)} {what} ({', '.join(keys[:3])}" in line


def test_another_depth_and_another_width_in_few_narrow_lines(small: Callable[..., SparseSwin]) -> None:
    model = small()
    with pytest.raises(UserError) as deeper:
        fit_weights(small(depths=(2, 2, 18, 2)).state_dict(), model.state_dict(), "deep.pth")
    assert "unknown:          stages.2.blocks.{3-17}.attn.w_msa.qkv.weight" in deeper.value.details
    assert "unknown:          stages.3.blocks.1.norm1.bias" in deeper.value.details
    assert len(deeper.value.details) == 2 * 13
    with pytest.raises(UserError) as wider:
        fit_weights(small(embed_dims=16).state_dict(), model.state_dict(), "wide.pth")
    assert "of another shape: norm3.weight  128, but 64 in the model" in wider.value.details
    assert "of another shape: stages.2.blocks.{0-2}.ffn.layers.1.weight  64×256, but 32×128 in the model" in (
        wider.value.details
    )
    assert max(map(len, wider.value.details)) <= 118


def test_computed_buffers_are_neither_missing_nor_unknown(small: Callable[..., SparseSwin]) -> None:
    own = small().state_dict()
    bare: dict[str, Tensor] = {key: value for key, value in own.items() if not key.endswith("relative_position_index")}
    assert fit_weights(bare, own, "a.pth").keys() == bare.keys()
    assert fit_weights({**own, "stages.0.blocks.1.attn_mask": torch.ones(1)}, bare, "a.pth").keys() == bare.keys()


@pytest.mark.parametrize("window", [3, 7])
def test_tables_of_another_window_are_resized(small: Callable[..., SparseSwin], window: int) -> None:
    model = small(window_size=window)
    fitted = fit_weights(small(use_abs_pos_embed=False).state_dict(), model.state_dict(), "a.pth")
    assert all(value.shape == model.state_dict()[key].shape for key, value in fitted.items())
    model.load_state_dict(fitted, strict=False)
