"""Optuna's studies over today's knobs.

A newer fagen may give a knob other choices, and Optuna wants every trial of a study to know the
same ones: what was told before moves over, as far as it can.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

Space = Mapping[str, BaseDistribution]


def study_of(storage: optuna.storages.BaseStorage, name: str, space: Space) -> optuna.Study:
    """The study of that name, with whatever it holds; made where it is not there."""
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    before = study.get_trials(deepcopy=False)
    known = [item for trial in before for item in trial.distributions.items()]
    if all(space.get(knob, choices) == choices for knob, choices in known):
        return study
    about = dict(study.user_attrs)
    optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(storage=storage, study_name=name)
    for key, value in about.items():
        study.set_user_attr(key, value)
    study.add_trials([moved for t in before if (moved := _moved(t, space))])
    return study


def _moved(trial: FrozenTrial, space: Space) -> FrozenTrial | None:
    """The trial in today's space; None for one that nobody answered, or that is no point of it."""
    knobs = {knob: space[knob] for knob in trial.params if knob in space}
    held = all(isinstance(known, CategoricalDistribution) and trial.params[knob] in known.choices
               for knob, known in knobs.items())
    if not trial.state.is_finished() or not held or len(knobs) < len(trial.params):
        return None
    return create_trial(
        state=trial.state, value=trial.value, distributions=knobs,
        params={knob: trial.params[knob] for knob in knobs}, user_attrs=trial.user_attrs,
    )
