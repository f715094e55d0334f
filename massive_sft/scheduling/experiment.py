"""The Tune experiment of a run: a trial for each training that its source gives."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # trials that start at once; Tune's own is one
# What Tune would write down of each trial nobody reads: the ledger is what a run goes on from.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")

import ray
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.experiment.trial import _TrialInfo
from ray.tune.registry import TRAINABLE_CLASS, _global_registry
from ray.tune.search import Searcher
from ray.util import deregister_serializer, register_serializer

from massive_sft.core.errors import ExitCode, MassiveSFTError
from massive_sft.scheduling.trials import Setup, TrialProcess, nothing

RESTARTS = 3  # of a trial whose process is killed; what fails in a trial, it tells and is no reason to restart it


class TrialsLost(MassiveSFTError):
    """The processes of trials were killed as often as they were started again: what they had to do is not done."""

    exit_code = ExitCode.TRY_AGAIN

    def __init__(self, trajectories: Sequence[str]):
        self.trajectories = list(trajectories)
        super().__init__(self.trajectories)

    def __str__(self) -> str:
        names = ", ".join(self.trajectories)
        return (
            f"the trials of {names} were killed again and again (out of memory on the head node?), so their cells are "
            "not all done; run the same command to go on"
        )


class TrialDeaths(tune.Callback):
    """Hears of trials whose process was killed. The copies that Tune stores hear of nothing.

    Args:
        say: told when one begins again.
        lost: called with the trajectory of one that does not.
    """

    def __init__(self, say: Callable[[str], None] = print, lost: Callable[[str], None] = print):
        self._say = say
        self._lost = lost

    def __reduce__(self) -> tuple[type[TrialDeaths], tuple[()]]:
        return TrialDeaths, ()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"the trial of {trial.config['trajectory']} was killed; it begins again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._lost(trial.config["trajectory"])


def run_experiment(name: str, setup: Setup, searcher: Searcher, deaths: TrialDeaths, ended: threading.Event) -> None:
    """Begin trials, as many at a time as the searcher gives, until it has no more or ``ended`` is set.

    Args:
        name: of the experiment.
        setup: of its trials.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong in a trial, the trial tells
    with tempfile.TemporaryDirectory(prefix="massive-sft-tune-") as folder, _registered(setup) as trial:
        tune.Tuner(
            trial,
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=folder,
                name=name,
                verbose=0,
                stop=_Until(ended),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                callbacks=[deaths],
            ),
        ).fit()


@contextmanager
def _registered(setup: Setup) -> Iterator[str]:
    """Register the process of a trial with Tune; yield its name there.

    What trials would get of Tune with their configuration, a storage and a name, stays here: both are classes of Tune,
    and importing that is two thirds of such a process.
    """
    trial = type("Trial", (TrialProcess,), {"setup": ray.put(setup)})
    # As ``tune.register_trainable``, which would have it be of a class of Tune.
    _global_registry.register(TRAINABLE_CLASS, trial.__name__, trial)
    kept = (StorageContext, _TrialInfo)
    for each in kept:
        register_serializer(each, serializer=nothing, deserializer=nothing)
    try:
        yield trial.__name__
    finally:
        for each in kept:
            deregister_serializer(each)


class _Until(tune.Stopper):
    """Ends Tune, whatever it has not begun, once an event is set. The copies that Tune stores never do."""

    def __init__(self, ended: threading.Event | None = None):
        self._ended = ended or threading.Event()

    def __reduce__(self) -> tuple[type[_Until], tuple[()]]:
        return _Until, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._ended.is_set()
