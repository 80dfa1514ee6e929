"""Elastic inference on the command line: a sub-model to run, one to draft with, or a policy.

elastic.apply(model, Elastic(submodel="E2B", policy="latency:20"))
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gemelo.cli.value_checks import kind_and_number
from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.cli.groups import Elastic
    from gemelo.engine.elastic.policy import Policy
    from gemelo.engine.session import Session


def apply(model: Model, session: Session, options: Elastic) -> None:
    """Set up a session as the options say; nothing for those not given."""
    submodel, speculate, policy = options.submodel, options.speculate, options.policy
    session.rebuild_mode = options.rebuild
    if options.rebuild != "off" and session.active is None:
        family = model.config.model_type
        raise InputError(f"--rebuild {options.rebuild}: {family} has no sub-models; Gemma 3n has")
    if submodel is not None:
        session.use(submodel, options.rebuild)
    if speculate is not None:
        name, _, bits = speculate.partition(":")
        if bits not in ("", "int4"):
            raise InputError(f"--speculate {speculate}: expected NAME or NAME:int4")
        session.draft = model.draft(name, format="q4_0" if bits else None)
    if policy is not None:
        session.policy = parse(policy, model)


def parse(text: str, model: Model) -> Policy:
    """A policy from KIND:NUMBER."""
    from gemelo.config import Submodel
    from gemelo.engine.elastic import policy
    from gemelo.engine.memory.process import process_bytes
    from gemelo.engine.memory.residency import release_tail

    kind, number = kind_and_number(text)
    config = model.config
    if not config.is_matformer:
        raise InputError(f"--policy {text}: {config.model_type} has no sub-models; Gemma 3n has")
    if kind == "latency":
        return policy.latency(number, Submodel.ladder(config))
    if kind == "memory":
        whole, limit = model.engine.decoder, int(number * 2**30)
        ladder = Submodel.ladder(config)
        return policy.memory(limit, ladder, process_bytes, partial(release_tail, whole))
    return policy.difficulty(Submodel.easy(config), Submodel.whole(config), number)


def summary(session: Session) -> list[str]:
    """What the sub-models and the draft did, a line each, for people."""
    lines = []
    stats, draft = session.stats, session.draft
    if stats.switches or len(stats.tokens) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in stats.tokens.most_common())
        lines.append(
            f"tokens by sub-model: {sizes}; {stats.switches} switches, "
            f"{stats.rebuilt_tokens} tokens rebuilt"
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
