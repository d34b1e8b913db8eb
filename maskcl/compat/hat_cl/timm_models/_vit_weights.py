"""An ordinary ViT's weights in a HAT ViT."""

from __future__ import annotations

from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn


def from_plain_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's state of an ordinary ViT in the names of ``model``, whose masks stay as they are.

    The joint projection is cut into query, key and value; norms, layer scales, class token and
    position embedding are copied to every task.

    Args:
        state_dict: of ``timm.create_model("vit_...")``; one that is in HAT's names already is kept.
        model: the HATVisionTransformer.

    Raises:
        ValueError: a name has no place in the model.
    """
    own: dict[str, Tensor] = model.state_dict()
    if any(".masker." in name for name in state_dict):
        return state_dict
    result = {name: value for name, value in own.items() if ".masker." in name}
    for name, value in state_dict.items():
        if name == "pos_embed" and value.shape != own["pos_embed.0"].shape:
            value = _resampled(value, model)
        places = _places(name, value, own)
        if not places and name.split(".")[0] not in ("head", "fc_norm", "norm"):
            raise ValueError(f"from_plain_state_dict: {name} has no place in the model")
        result.update(places)
    return result


def _resampled(value: Tensor, model: Any) -> Tensor:
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = list(model.patch_embed.grid_size)
    resized: Tensor = resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix)
    return resized


def _places(name: str, value: Tensor, own: dict[str, Tensor]) -> dict[str, Tensor]:
    if name in own:
        return {name: value}
    if ".attn.qkv." in name:
        parts = zip("qkv", value.chunk(3), strict=True)
        return {name.replace(".qkv.", f".qkv_{which}."): part for which, part in parts}
    owner, _, leaf = name.rpartition(".")
    pattern = f"{owner}.{{}}.{leaf}" if owner else f"{leaf}.{{}}"
    places, index = {}, 0
    while (place := pattern.format(index)) in own:
        places[place] = value
        index += 1
    return places
