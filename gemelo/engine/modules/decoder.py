"""Module decoder: PyTorch modules behind the protocol that an engine asks for.

On CUDA, in training and as the oracle of the native program a decoder runs as modules, one
operation after the other (`models`). Scores come back as arrays of the host.

    decoder = ModuleDecoder(decoder_module(config, weights, device="cuda"), weights)
    [scores], finite = decoder.step([StepPiece(decoder.cache(4096), ids, position=0)])

B rows, which of a step is one; T tokens, D width, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gemelo.checkpoints.modules import decoder_module
from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.engine.decoder import StepInputs, StepPiece, check_pieces, make_room
from gemelo.engine.kv import KVCache
from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.engine.native_decoder import ModalityEmbeddings, NativeDecoder, PerLayerTable
from gemelo.kernels.quants import Floats, unpack
from gemelo.models import layers
from gemelo.models.decoder import Decoder
from gemelo.models.quantised import QuantLayer, packed_of
from gemelo.weights.tensors import Weights


class ModuleDecoder:
    """A module, the weights that it was made of, and how a step is put to it."""

    def __init__(
        self,
        module: Decoder,
        weights: Weights | None = None,
        table: PerLayerTable | None = None,
        modality_embeddings: ModalityEmbeddings | None = None,
    ) -> None:
        """weights None are the module's own; table has the per-layer embeddings where the module is
        not to hold them."""
        self.module = module
        self.weights = weights_of(module) if weights is None else weights
        self.table, self.modality_embeddings = table, modality_embeddings
        if table is not None:
            module.per_layer_table = TableRows(table, module)
        if modality_embeddings is not None:
            module.modality_embeddings = OwnEmbeddings(modality_embeddings)

    @classmethod
    def of(cls, decoder: NativeDecoder) -> ModuleDecoder:
        """The same model as modules, over the same weights; of a view, the view."""
        if decoder.nested_in is not None:
            whole, submodel = decoder.nested_in
            return cls.of(whole).view(submodel)
        module = decoder_module(decoder.config, decoder.weights)
        return cls(module, decoder.weights, decoder.table, decoder.modality_embeddings)

    @property
    def config(self) -> ModelConfig:
        """That of what runs."""
        return self.module.config

    @property
    def layer_indices(self) -> Sequence[int]:
        """The whole's layers that run."""
        return self.module.layer_indices

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.module.norm.weight.device

    @property
    def device_name(self) -> str:
        """Its name, with the number of a CUDA device."""
        return str(self.device)

    @property
    def kv_format(self) -> KVFormat:
        """The module's own dtype."""
        return "plain"

    def cache(self, context: int, chunk: int = 512, kv_format: KVFormat | None = None) -> KVCache:
        """An empty cache of one sequence, on the module's device."""
        dtype = self.module.embed_tokens.dtype
        chosen = kv_format or self.kv_format
        return tensor_cache(self.config, context, chunk, dtype, self.device, chosen)

    @torch.inference_mode()
    def step(self, pieces: Sequence[StepPiece]) -> tuple[list[Floats], bool]:
        """See `gemelo.engine.decoder.Decoder.step`. One piece runs after the other."""
        check_pieces(pieces, self.config.vocab_size)
        make_room(pieces)
        found = [self._scores(piece) for piece in pieces]
        return found, all(bool(np.isfinite(scores).all()) for scores in found)

    def _scores(self, piece: StepPiece) -> Floats:
        hidden = self.module(
            self.tensor(piece.ids),
            self.tensor(range(piece.position, piece.end)),
            ModuleCache(piece.cache),
            piece.logits_to_keep,
            None if piece.inputs is None else self.tensors(piece.inputs),
        )[0]
        if not len(hidden):
            return np.empty((0, self.config.vocab_size), np.float32)
        scores: Floats = self.module.logits(hidden).float().cpu().numpy()
        return scores

    def tensor(self, numbers: Sequence[int]) -> Tensor:
        """Ids or positions as one row, (1, T), where the module is."""
        return torch.tensor([list(numbers)], device=self.device)

    def tensors(self, inputs: StepInputs) -> layers.StepInputs:
        """Inputs as those of one row, where the module is and in its dtype."""
        embeds = torch.from_numpy(inputs.inputs_embeds)[None]
        until = inputs.attend_until
        return layers.StepInputs(
            embeds.to(self.device, self.module.embed_tokens.dtype),
            None if until is None else torch.from_numpy(until)[None].to(self.device),
        )

    def has_own_embeddings(self, ids: Sequence[int]) -> bool:
        """Whether there are ids that have their embeddings with a modality."""
        special = self.modality_embeddings
        return special is not None and max(ids, default=0) >= special.first

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Floats:
        """ids (T,) -> (T, D), in the values that the module computes with."""
        embeds: Floats = self.module.embed(self.tensor(ids))[0].float().cpu().numpy()
        return embeds

    def view(self, submodel: Submodel) -> ModuleDecoder:
        """The nested model, over the same modules."""
        nested = self.module.view(submodel)
        return ModuleDecoder(nested, self.weights, self.table, self.modality_embeddings)

    def prepare(self, num_tokens: int) -> float:
        """Nothing: modules stay as they were made."""
        return 0.0

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have the per-layer embeddings of ids read ahead."""
        if self.table is not None:
            rows = self.config.vocab_size_per_layer_input
            self.table.prefetch([id if id < rows else 0 for id in ids])


class TableRows:
    """Per-layer embeddings out of the way, as a module asks for them."""

    def __init__(self, table: PerLayerTable, module: Decoder) -> None:
        self.table, self.module = table, module

    def rows(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        """ids (B, T) on any device -> vectors of the layers `kept`, (B, T, len(kept), P) there."""
        found = unpack(self.table.packed(ids.reshape(-1).tolist(), kept))
        values = torch.from_numpy(found).to(ids.device, self.module.embed_tokens.dtype)
        return values.view(*ids.shape, len(kept), -1)


class OwnEmbeddings:
    """Embeddings of ids that have them with a modality, as a module asks for them."""

    def __init__(self, special: ModalityEmbeddings) -> None:
        self.special = special

    def contains(self, ids: Tensor) -> bool:
        """Whether there are such ids."""
        return int(ids.max()) >= self.special.first

    def replace(self, x: Tensor, ids: Tensor) -> Tensor:
        """The embeddings x (B, T, D) of ids (B, T), with theirs in place."""
        x = x.clone()
        for row, own in enumerate(ids.tolist()):
            for place, embeds in self.special.rows(own).items():
                x[row, place] = torch.from_numpy(embeds).to(x)
        return x


def weights_of(module: nn.Module) -> Weights:
    """The weights that a module on the CPU has now, by name, over the same memory."""
    found = {}
    for name, child in module.named_modules():
        if isinstance(child, QuantLayer):
            found[f"{name}.weight"] = child.weight
    for name, parameter in module.named_parameters():
        found[name] = packed_of(parameter.detach())
    return Weights(found)
