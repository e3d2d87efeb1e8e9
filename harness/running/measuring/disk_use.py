"""Bytes on disk of the weights that a method runs and another one stores."""

from __future__ import annotations

from typing import Any

from harness.encoder.multi_exit import MultiExitModel
from harness.engines.choice import on_engine
from harness.measure.resources import SavedState
from harness.running.session import Session
from harness.toolkit.fitted import FittedModel


def models_of(fitted: Any) -> set[int]:
    """Return the identities of the models in the attributes of a fitted method, and of those that it borrows from."""
    if isinstance(fitted, MultiExitModel):
        return {id(fitted)}
    return set().union(*map(models_of, vars(fitted).values())) if isinstance(fitted, FittedModel) else set()


def lenders(session: Session, name: str, state: SavedState) -> list[str]:
    """Return the methods whose weights ``name`` runs and does not store itself.

    They are all that it needs if it stores no weights at all. If it stores tensors of another kind, such as a table of exits,
    they are those whose model it runs.

    Args:
        state: of the method, as it would be stored.
    """
    needs = [*session.settings.profile.method_of(name).needs]
    if not state.weights:
        return needs
    if state.has_model:
        return []
    own = models_of(session.fit(name))
    return [need for need in needs if own & models_of(session.fit(need))]


def borrowed_bytes(session: Session, name: str, state: SavedState, user: str) -> int:
    """Return the bytes on disk of all weights that ``name`` borrows, on the engine of ``user``, which runs them."""
    return sum(stored_bytes(session, need, user) for need in lenders(session, name, state))


def stored_bytes(session: Session, name: str, user: str) -> int:
    """Return the bytes on disk of a method with its own or borrowed weights; each is saved once per session and engine."""
    engine, known = session.settings.profile.engine(user), session.sizes
    if (name, engine) not in known:
        fit = session.fit(name)
        state = SavedState.of(fit if engine is None else on_engine(engine, fit, session.prepared.task.train.tokens))
        known[name, engine] = state.size + borrowed_bytes(session, name, state, user)
    return known[name, engine]
