"""From a configuration to a run that is ready to train, as `charlm train` and `charlm.train` begin it.

What a start shows, and how it is stopped, is up to a `Watcher`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from charlm.config import Config
from charlm.lifecycle import begin
from charlm.lifecycle.begin import PreparedRun, PreparedText
from charlm.lifecycle.resume import open_run
from charlm.runs import RunFolder, next_free_name
from charlm.storage import folder_lock
from charlm.text.scan import Progress
from charlm.training.plan import BudgetPlan


class Watcher:
    """Shows the start of a run, and says when to stop it. This one shows nothing and goes on."""

    def should_stop(self) -> bool:
        """Tell whether to stop; asked often."""
        return False

    def should_save(self) -> bool:
        """Tell whether to save now and go on; true once for each request."""
        return False

    def at_once(self) -> AbstractContextManager[None]:
        """Return a context in which a request to stop raises Stopped at once: nothing is to be saved."""
        return nullcontext()

    def reading(self) -> AbstractContextManager[Progress]:
        """Return a context for passes over the text; it gives what is called with the bytes read."""
        return nullcontext(lambda what, read: None)

    def fetching(self) -> Callable[[int, int], None]:
        """Return what is called while a text is downloaded, with the bytes done and their total."""
        return lambda done, total: None

    def planning(self, config: Config) -> None:
        """Take notice that models will be timed for the budget of a run."""


@dataclass(frozen=True)
class Start:
    """What is asked of a new run."""

    config: Config
    name: str  # of its folder under runs/, if `out` is None
    out: Path | None = None
    changes: Sequence[str] = ()  # KEY=VALUE that were asked for, which a plan must not change
    began: float = field(default_factory=time.perf_counter)  # what a budget counts from


@dataclass(frozen=True)
class Planned:
    """A run that could begin."""

    config: Config
    place: Path | None  # None: the next free name
    text: PreparedText
    plans: dict[str, BudgetPlan]  # by the name of an expert


def planned(start: Start, watcher: Watcher) -> Planned:
    """Read the text of a new run and plan it; nothing is written.

    Raises the errors of `begin.check_new_folder`, `begin.prepare_text` and `begin.plan_run`.
    """
    config = start.config
    place = start.out or (Path(config.run.out) if config.run.out else None)
    begin.check_new_folder(place or next_free_name(start.name))
    with watcher.at_once(), watcher.reading() as progress:
        text = begin.prepare_text(config, progress, watcher.fetching(), place)
        if config.train.minutes:
            watcher.planning(config)
        spent = time.perf_counter() - start.began
        config, plans = begin.plan_run(config, text, start.changes, spent)
    return Planned(config, place, text, plans)


@contextmanager
def begun(start: Start, watcher: Watcher) -> Iterator[PreparedRun]:
    """Plan a new run, make its folder, and hold it locked; take it back if it fails before a step.

    Raises the errors of `planned` and `begin.create_run`.
    """
    plan = planned(start, watcher)
    place = nullcontext(plan.place) if plan.place else begin.free_folder(start.name)
    with place as folder, begin.new_folder_for_run(folder):
        with watcher.reading() as progress:
            prepared = begin.create_run(
                plan.config,
                folder,
                plan.text,
                progress,
                watcher.should_stop,
                resumable=plan.place is not None,
            )
        prepared.plans = plan.plans
        try:
            yield prepared
        except Exception as error:
            kept = begin.kept_of(plan.text, plan.place is not None, error)
            begin.take_back_unless_begun(prepared.run, kept)
            raise


@contextmanager
def resumed(
    run: RunFolder,
    resolve: Callable[[], Config],
    watcher: Watcher,
    *,
    allow_new_data: bool = False,
    processes: int = 1,
) -> Iterator[PreparedRun]:
    """Lock a run, open it, and hold it locked.

    `resolve` returns its configuration. It is called under the lock, because another process may have
    changed it. Raises the errors of `resume.open_run`.
    """
    with folder_lock(run.path):
        with watcher.at_once(), watcher.reading() as progress:
            prepared = open_run(
                resolve(), run, progress, allow_new_data=allow_new_data, processes=processes
            )
        yield prepared
