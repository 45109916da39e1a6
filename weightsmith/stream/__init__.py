"""Edits that arrive one after another: their journal, what guards the earlier ones, and what decides whether one stays."""

from weightsmith.stream.journal import Batch, Edit, Journal
from weightsmith.stream.replay import ReplayBuffer, ReplayOptions
from weightsmith.stream.solves import replay_for
from weightsmith.stream.stream import Proposal, Stream, settings_of
from weightsmith.stream.trust import Trust, TrustOptions, Verdict

__all__ = [
    "Batch",
    "Edit",
    "Journal",
    "Proposal",
    "ReplayBuffer",
    "ReplayOptions",
    "Stream",
    "Trust",
    "TrustOptions",
    "Verdict",
    "replay_for",
    "settings_of",
]
