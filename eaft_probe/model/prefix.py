"""Keys and values of a shared prefix, computed once and put before every row of a batch."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's prefix: grown by its first update, from then on read and never added to.

    The rows' own keys are not kept, so memory is one layer's and not the whole model's.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        shape = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(shape), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(shape), value_states], dim=-2)


def empty_prefix(config: PreTrainedConfig) -> DynamicCache | None:
    """A cache to be filled with a prefix; None for models whose layers keep anything else
    (a sliding window, a recurrent state)."""
    cache = DynamicCache(config=config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [PrefixLayer() for _ in cache.layers]
    return cache
