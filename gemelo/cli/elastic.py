"""Elastic inference on the command line: a sub-model to run, one to draft with, or a policy.

elastic.apply(model, Elastic(submodel="E2B", policy="latency:20"))
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from gemelo.cli.value_checks import kind_and_number
from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.cli.groups import Elastic
    from gemelo.config import Submodel
    from gemelo.engine.elastic.policy import Policy
    from gemelo.engine.elastic.speculative import Draft
    from gemelo.engine.session import Session

_ENOUGH = 16  # guesses from which the share of right ones says something


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
        session.draft = _draft(model, session, speculate)
    if policy is not None:
        session.policy = parse(policy, model)


def _draft(model: Model, session: Session, text: str) -> Draft:
    """A draft from NAME or NAME:int4. The sub-model that runs, in the same weights, is refused."""
    from gemelo.config import Submodel

    name, _, bits = text.partition(":")
    if bits not in ("", "int4"):
        raise InputError(f"--speculate {text}: expected NAME or NAME:int4")
    if not bits and session.active and session.active == Submodel.of(name, model.config):
        raise InputError(
            f"--speculate {text}: this is what runs, and it cannot draft for itself; name a "
            f"smaller sub-model, or {name}:int4"
        )
    return model.draft(name, format="q4_0" if bits else None)


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
        return policy.latency(number, Submodel.by_size(config))
    if kind == "memory":
        release = partial(release_tail, model.engine.decoder)
        return policy.memory(int(number * 2**30), Submodel.by_size(config), process_bytes, release)
    return policy.difficulty(Submodel.easy(config), Submodel.whole(config), number)


def check_one_answer(options: Elastic) -> None:
    """Raise InputError for an option that is about changes of size, where there are none."""
    if options.rebuild != "off" and options.policy is None:
        raise InputError(
            f"--rebuild {options.rebuild} does nothing without --policy: the sub-model stays the "
            "same in one answer"
        )


def summary(session: Session) -> list[str]:
    """What the sub-models and the draft did since the session began, a line each, for people."""
    lines = []
    stats, draft = session.stats, session.draft
    if session.policy is not None or stats.switches or len(stats.tokens) > 1:
        lines.append(_choices_in_words(session))
    if draft is not None:
        lines.append(draft_in_words(draft))
    return lines


def _choices_in_words(session: Session) -> str:
    """Which sub-models answered, how often that changed, and what was computed again for it."""
    stats = session.stats
    counts = [f"{name} {count}" for name, count in stats.answered.most_common()]
    shares = ", ".join([f"{counts[0]} tokens", *counts[1:]] if counts else ["no token yet"])
    changes = "1 switch" if stats.switches == 1 else f"{stats.switches} switches"
    rebuilt = f", {stats.rebuilt_tokens} tokens of the KV cache rebuilt"
    again = rebuilt if stats.rebuilt_tokens or session.rebuild_mode != "off" else ""
    return f"{policy_name(session) or 'answers by sub-model'}: {shares}; {changes}{again}"


def draft_in_words(draft: Draft) -> str:
    """How many guesses were right, what one costs, and whether that pays."""
    if not draft.rounds:
        return f"draft {draft.name}: no guess yet; a step without guesses is measured first"
    percent = 100 * draft.accepted / draft.drafted
    parts = [f"{draft.accepted} of {draft.drafted} guesses right ({percent:.0f} %)"]
    if draft.draft_cost is not None:
        parts.append(f"a guess costs {draft.draft_cost:.2f} of a step")
    return f"draft {draft.name}: {'; '.join([*parts, _verdict(draft)])}"


def _verdict(draft: Draft) -> str:
    """Whether a draft makes answers faster, as far as is known."""
    speedup = draft.best_speedup
    if draft.is_paused:
        return "it does not pay, and is off until it is tried again"
    if speedup is None or draft.drafted < _ENOUGH:
        return f"under {_ENOUGH} guesses do not tell yet whether it pays"
    if speedup > 1:
        return f"it pays: about {speedup:.1f} times as fast as without"
    return f"it does not pay: {speedup:.2f} times as fast as without"


def sizes(model: Model, active: Submodel | None, width: int) -> list[str]:
    """The table of a model's sub-models in lines no wider than `width`, the active one marked; no
    line for a model that has one size."""
    from gemelo.cli.model_tables import size_lines
    from gemelo.inspection import sizes as inspected
    from gemelo.inspection.weights import running

    decoder = model.engine.decoder
    weights = running(decoder.weights, decoder.config, decoder.layer_indices)
    found = inspected.sizes(decoder.config, weights)
    marked = next((size.name for size in found if size.submodel == active), "")
    return size_lines(found, width, marked) if found else []


def policy_name(session: Session) -> str | None:
    """What a session's policy is called; None without one."""
    return None if session.policy is None else getattr(session.policy, "__name__", "policy")


def to_json(session: Session) -> dict[str, Any]:
    """`sizes`: the policy, tokens by sub-model and switches, null for a model without sub-models.
    `speculation`: the draft's guesses and what they took, null without a draft."""
    stats, draft = session.stats, session.draft
    sizes = {
        "policy": policy_name(session),
        "answered_tokens": dict(stats.answered),
        "switches": stats.switches,
        "rebuilt_tokens": stats.rebuilt_tokens,
    }
    speculation = draft and {
        "draft": draft.name,
        "drafted": draft.drafted,
        "accepted": draft.accepted,
        "rounds": draft.rounds,
        "tokens_per_round": draft.tokens_per_round,
        "draft_cost": draft.draft_cost,
        "speedup": draft.best_speedup,
        "paused": draft.is_paused,
    }
    return {"sizes": sizes if session.active else None, "speculation": speculation}
