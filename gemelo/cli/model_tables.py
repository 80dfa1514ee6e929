"""What `gemelo show` prints of a model: layers that are alike in one row, sums, and sub-models.

Rows are made of what `inspection` knows; nothing is reckoned here. A Gemma 3 and a Gemma 3n use the
same tables: what a model has nothing of is an empty column, which is left out.

    for line in layer_lines(summarise(checkpoint), width=100): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gemelo.cli.columns import Column, paragraph, table
from gemelo.cli.terminal import size

if TYPE_CHECKING:
    from gemelo.inspection.sizes import Size
    from gemelo.inspection.summary import Layer, Summary
    from gemelo.inspection.weights import Group

_ENCODERS = {  # what people call the modules
    "vision_tower": "vision tower",
    "embed_vision": "vision tower, its projector",
    "multi_modal_projector": "vision tower, its projector",
    "audio_tower": "audio encoder",
    "embed_audio": "audio encoder, its projector",
}
_EMBEDDING, _PER_LAYER_EMBEDDING = "embed_tokens", "embed_tokens_per_layer"
MIXES = (
    "-layer and -block are published mixes of E4B's and E2B's feed-forward widths: which layers "
    "are wide was chosen layer by layer, or by blocks of five (four sliding layers, a full one)."
)

# ---- layers --------------------------------------------------------------------------------------


def layer_lines(summary: Summary, width: int) -> list[str]:
    """One row for all layers that are alike."""
    groups = alike(summary.layers)
    rows = [layers[0] for layers in groups]
    shares_keys = any(layer.kv_layer != layer.index for layer in summary.layers)
    per_layer = summary.config.hidden_size_per_layer_input
    return table(
        [
            Column("layers", [runs([x.index for x in layers]) for layers in groups], most=17),
            Column("attention", [_attention(layer) for layer in rows]),
            Column("keys and values", [_keys(x) if shares_keys else "" for x in rows], rank=2),
            Column("feed-forward", [_width(layer) for layer in rows], rank=3),
            Column("sparsity", [_percent(layer.sparsity) for layer in rows], True, rank=5),
            Column("per-layer embedding", [str(per_layer or "") for _ in rows], True, rank=6),
            Column("format", [", ".join(layer.formats) for layer in rows], rank=7),
            Column("parameters each", [f"{x.parameters:,}" for x in rows], True, rank=4),
            Column("MiB each", [mib(layer.bytes) for layer in rows], True, rank=1),
        ],
        width,
    )


def alike(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in groups that differ in nothing that the table shows, by their first."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        key = (_attention(layer), _keys(layer), _width(layer), layer.sparsity)
        groups.setdefault((*key, layer.formats, layer.parameters, layer.bytes), []).append(layer)
    return list(groups.values())


def runs(numbers: Sequence[int]) -> str:
    """Numbers in order, neighbours as a run: "0-3, 5-8"."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and ends[-1][1] == number - 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)


def shape_lines(summary: Summary, width: int) -> list[str]:
    """The shapes of all matrices: those of one shape in one row, with the layers that have them."""
    found: dict[tuple[str, str], list[int]] = {}
    for layer in summary.layers:
        for name, weight in layer.weights.items():
            if len(weight.shape) == 2:
                found.setdefault((name, _shape(weight.shape)), []).append(layer.index)
    together: dict[tuple[str, str], dict[str, None]] = {}  # names, each once and in order
    for (name, shape), indices in found.items():
        together.setdefault((shape, runs(indices)), {})[name.rpartition(".")[2]] = None
    for name, group in summary.parts.items():
        for weight in group.weights.values():
            if len(weight.shape) == 2:
                together.setdefault((_shape(weight.shape), ""), {})[name] = None
    return table(
        [
            Column("matrix", [", ".join(names) for names in together.values()], most=26),
            Column("out x in", [shape for shape, _ in together], most=8 if width < 60 else 0),
            Column("layers", [layers for _, layers in together], rank=1, most=36),
        ],
        width,
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _attention(layer: Layer) -> str:
    return "full" if layer.window is None else f"sliding {layer.window}"


def _keys(layer: Layer) -> str:
    return "own" if layer.kv_layer == layer.index else f"layer {layer.kv_layer}"


def _width(layer: Layer) -> str:
    if layer.ffn_width == layer.whole_width:
        return f"{layer.ffn_width}"
    return f"{layer.ffn_width} of {layer.whole_width}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share else ""


def mib(count: float) -> str:
    """Bytes in MiB: with a decimal below ten."""
    value = count / 2**20
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


# ---- sums ----------------------------------------------------------------------------------------


def totals(summary: Summary) -> Iterator[str]:
    """What the model comes to, and what a context costs."""
    tied = "" if "lm_head" in summary.parts else " (tied: it is the output head too)"
    yield _sum(f"core ({len(summary.layers)} layers; all but the embeddings)", summary.core)
    yield _sum(f"embedding{tied}", summary.parts[_EMBEDDING])
    if "lm_head" in summary.parts:
        yield _sum("lm_head", summary.parts["lm_head"])
    if _PER_LAYER_EMBEDDING in summary.parts:
        yield _sum("per-layer embeddings", summary.parts[_PER_LAYER_EMBEDDING])
    yield f"decoder: {summary.parameters:,} parameters, {size(summary.bytes)}"
    for name, group in summary.towers.items():
        yield _sum(_ENCODERS.get(name, name), group)
    costs = (f"{tokens:,} tokens {size(count)}" for tokens, count in summary.kv_bytes.items())
    yield f"KV cache: {', '.join(costs)}"
    yield f"chat template: {'yes' if summary.chat_template else 'none, a base model'}"


def _sum(name: str, group: Group) -> str:
    formats = ", ".join(group.formats)
    return f"{name}: {group.parameters:,} parameters, {size(group.bytes)} ({formats})"


def sentences(summary: Summary, smaller: Size | None) -> Iterator[str]:
    """What is particular to Gemma 3n, for a model that has it; `smaller` is a sub-model of it."""
    config, part = summary.config, summary.submodel
    if part is not None and part.skipped_layers:
        yield (
            f"{part.name or 'The sub-model'} skips layers {runs(sorted(part.skipped_layers))} of "
            "the whole; those that are left are numbered anew here."
        )
    if any(layer.sparsity for layer in summary.layers):
        yield (
            "Sparsity is the share of a feed-forward's neurons that its gate switches off at every "
            "token (activation sparsity)."
        )
    table = summary.parts.get(_PER_LAYER_EMBEDDING)
    if table is not None:
        (weight,) = table.weights.values()
        yield (
            "By default the per-layer embeddings stay in the file: a token reads one row of "
            f"{size(weight.bytes / weight.shape[0])}, and the table takes no memory (--ple ram or "
            "device copies it)."
        )
    if smaller is not None:
        resident = summary.bytes - (table.bytes if table else 0)
        yield (
            f"{smaller.name}, a sub-model of it (MatFormer), keeps {size(smaller.resident_bytes)} "
            f"in memory where this model keeps {size(resident)}; `gemelo show sizes` lists all."
        )
    if config.num_kv_shared_layers:
        own = len(config.kv_layers)
        yield (
            f"Layers from {own} on attend over keys and values of lower ones (KV sharing): all but "
            f"the last token of a prompt go through the first {own} layers alone."
        )
    for detail in summary.details:
        yield f"Of the file: {detail}."


# ---- sub-models ----------------------------------------------------------------------------------


def size_lines(sizes: Sequence[Size], width: int, active: str = "") -> list[str]:
    """The sub-models of a model, a row each, and what the columns and the names mean; an asterisk
    marks the active one."""
    lines = table(
        [
            Column("name", [f"{s.name}{' *' if s.name == active else ''}" for s in sizes]),
            Column("layers", [_layers_of(one) for one in sizes], rank=3),
            Column("feed-forward widths", [one.widths for one in sizes], rank=2, most=22),
            Column("effective", [_count(s.effective_parameters) for s in sizes], True),
            Column("stored", [_count(s.parameters) for s in sizes], True, rank=5),
            Column("MiB read", [mib(one.read_bytes) for one in sizes], True, rank=1),
            Column("MiB resident", [mib(one.resident_bytes) for one in sizes], True, rank=4),
        ],
        width,
    )
    lines += ["", *paragraph(_MEANING, width)]
    if any(one.name.endswith(("-layer", "-block")) for one in sizes):
        lines += paragraph(MIXES, width)
    return lines


_MEANING = (
    "All of them lie in the one model (MatFormer): the first neurons of a feed-forward make a "
    "smaller one that is complete. Effective parameters leave out the embedding and the per-layer "
    "embeddings, stored ones leave out nothing. MiB read: weights that one token reads. MiB "
    "resident: what a model cut out with `gemelo slice` keeps in memory, its per-layer embeddings "
    "on disk."
)


def _layers_of(one: Size) -> str:
    num_layers = len(one.submodel.ffn_widths)
    return f"{num_layers} of {one.num_whole_layers}"


def _count(number: int) -> str:
    """Parameters for people: 2.52 B, 112 M, 82,800."""
    if number >= 1e9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
