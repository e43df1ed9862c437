"""Every number of the training recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Schedules count steps, never time, so that a run can be repeated."""

    # data (scenes of the generator's seed `data_seed`; all model seeds share them)
    data_seed: int = 0
    scenes: int = 12_288
    crowded: int = 8_192
    variants: int = 4
    monitor_scenes: int = 256
    select_scenes: int = 500
    test_scenes: int = 500

    # stages
    batch: int = 16
    vision_steps: int = 2_400
    language_steps: int = 2_000
    dropout_steps: int = 1_000
    report_every: int = 50
    evaluate_every: int = 200

    # optimiser: Muon for the matrices of the layers, AdamW for everything else
    vision_muon: float = 3e-3
    language_muon: float = 3e-3
    dropout_muon: float = 1.5e-3
    adamw_share: float = 2 / 3
    """AdamW's learning rate over Muon's."""
    warmup: float = 0.04

    # token dropout
    drop_steps: float = 0.7
    """Share of the steps of the dropout stage that drop tokens; the others see all."""
    drop_at_input: float = 0.5
    """Share of the dropping steps that drop before the decoder; the others before a random layer."""
    least_share: float = 0.04
    """Keep shares are log-uniform from here to 1."""


RECIPE = Recipe()

SMOKE = replace(
    RECIPE,
    scenes=16,
    crowded=8,
    variants=2,
    monitor_scenes=4,
    select_scenes=2,
    test_scenes=2,
    batch=4,
    vision_steps=2,
    language_steps=2,
    dropout_steps=2,
    report_every=2,
    evaluate_every=2,
)
"""A few steps on little data: tests that everything runs, learns nothing."""
