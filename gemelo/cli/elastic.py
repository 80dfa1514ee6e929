"""Options that make a Gemma 3n elastic: a size to run, a size to draft with, a policy that chooses.

elastic.apply(model, "E2B", speculate=None, policy="latency:20", repair="off")
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.engine.elastic.policy import Policy
    from gemelo.engine.session import RepairMode

_KINDS = "latency:TOKENS_PER_S, memory:GIB or difficulty:NATS"


def apply(
    model: Model,
    submodel: str | None,
    speculate: str | None,
    policy: str | None,
    repair: RepairMode,
) -> None:
    """Set up the model's session as the options say; nothing for those not given."""
    model.repair_mode = repair
    if speculate is not None and policy is not None:
        raise InputError("--speculate and --policy exclude each other: both choose the size")
    if submodel is not None:
        model.use(submodel, repair)
    if speculate is not None:
        name, _, bits = speculate.partition(":")
        if bits not in ("", "int4"):
            raise InputError(f"--speculate {speculate}: expected NAME or NAME:int4")
        model.speculate(name, format="q4_0" if bits else None)
    if policy is not None:
        model.policy = parse(policy, model)


def parse(text: str, model: Model) -> Policy:
    """A policy from KIND:NUMBER."""
    from gemelo.config import Submodel
    from gemelo.engine.elastic import policy
    from gemelo.engine.memory.pages import process_bytes
    from gemelo.engine.memory.per_layer_table import release_tail

    kind, _, value = text.partition(":")
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"--policy {text}: expected {_KINDS}") from None
    config = model.config
    if not config.is_matformer:
        raise InputError(f"--policy {text}: {config.model_type} has one size; Gemma 3n has many")
    if kind == "latency":
        return policy.latency(number, Submodel.ladder(config))
    if kind == "memory":
        whole, limit = model.engine.decoder, int(number * 2**30)
        ladder = Submodel.ladder(config)
        return policy.memory(limit, ladder, process_bytes, partial(release_tail, whole))
    if kind == "difficulty":
        return policy.difficulty(Submodel.easy(config), Submodel.whole(config), number)
    raise InputError(f"--policy {text}: expected {_KINDS}")


def told(model: Model) -> list[str]:
    """What the sizes did, a line each, for people."""
    lines = []
    stats, draft = model.stats, model.draft
    if stats.switches or len(stats.tokens) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in stats.tokens.most_common())
        lines.append(
            f"tokens by size: {sizes}; {stats.switches} switches, "
            f"{stats.repaired_tokens} tokens repaired"
        )
    if draft is not None and draft.rounds:
        full = draft.full_s or 1.0
        lines.append(
            f"drafted {draft.drafted}, accepted {draft.accepted} "
            f"(alpha {draft.alpha:.2f}, c {draft.draft_s / full:.2f}, "
            f"v {draft.verification_s(max(1, draft.gamma)) / full:.2f}), "
            f"{draft.tokens_per_round:.2f} tokens a round"
        )
    return lines
