"""Everything that a policy depends on, in one TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trimtab.agents.training.ppo import PPOSettings
from trimtab.core.errors import SpecError, unknown_name

__all__ = ["FamilyShare", "ImitationSettings", "LearnSettings", "read_settings"]


_LEAST_GRID = 4
_IMITATED = ("lr",)
_SHARES = ("near_share", "tuned_share", "far_share", "default_share", "withheld")


@dataclass(frozen=True)
class ImitationSettings:
    """Settings of the imitation.

    Attributes:
        learning_rate: Of Adam, at the start; it falls linearly to a tenth.
        updates: Steps of Adam an iteration; in the first eight at most 4, while no more than
            their runs are remembered.
        memory: Iterations whose runs are remembered.
        mixed: Remembered iterations that a step of Adam draws runs from.
        runs: Runs that it draws from each.
        distance: Weight of the squared distance from the tuned rate, in nats a squared decade;
            beyond four decades it grows linearly.
        overshoot: Share of the run that a decision answers for at least, where it leads above the
            tuned rate: what a rate too high destroys in a short window stays destroyed, unless
            ``spec.undo`` undoes it.
        lasting: The same for windows that are not short, at the beginning of the run; it falls with
            the share of the run that is done. Short windows may be undone (``spec.undo``).
        probe: Decades above the tuned rate that short windows have to lead to, at twice their
            weight; 0 leads to the tuned one. What is too high is found out, and undone
            (``spec.undo``).
        hold: Weight of -log p(no move) at the first decision, which has seen nothing: the window
            after it tells a start that is right from one far too high.
        restore: Weight of staying with the restores of the policy that training began from (on
            runs that another training remembered, of the one that it began from).
        polyak: Weight of the old average at each step of Adam; where steps are few (``updates``)
            the average is the policy itself.

    Raises:
        SpecError: A value is not allowed.
    """

    learning_rate: float = 1e-3
    updates: int = 24
    memory: int = 100
    mixed: int = 8
    runs: int = 16
    distance: float = 0.05
    overshoot: float = 0.0
    lasting: float = 0.0
    probe: float = 0.0
    hold: float = 0.0
    restore: float = 0.05
    polyak: float = 0.998

    def __post_init__(self) -> None:
        for name in ("updates", "memory", "mixed", "runs"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise SpecError(
                    f"imitation.{name}: {count!r} is not a whole number of at least 1; give one"
                )
        for name in (
            "learning_rate",
            "distance",
            "overshoot",
            "lasting",
            "probe",
            "hold",
            "restore",
            "polyak",
        ):
            number = getattr(self, name)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or number < 0:
                raise SpecError(
                    f"imitation.{name}: {number!r} is not a finite number of at least 0; give one"
                )
        if not self.learning_rate > 0:
            raise SpecError("imitation.learning_rate: 0 learns nothing; give a rate above it")
        if not self.polyak < 1:
            raise SpecError(f"imitation.polyak: {self.polyak!r} is not below 1; try 0.998")


@dataclass(frozen=True)
class FamilyShare:
    """A family of simulated runs and how often it is drawn.

    Attributes:
        name: Such as ``"simulated/mlp"``.
        share: Relative frequency among iterations.
        variants: Network shapes; empty: all.
        options: Keywords of the family's options.
        begin: Share of all iterations after which it is first drawn.
        subsets: Hyperparameters that a batch of runs may steer, one of these drawn a batch; what
            is not steered stays at its start. Empty: all that are offered.
    """

    name: str
    share: float = 1.0
    variants: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    begin: float = 0.0
    subsets: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class LearnSettings:
    """Everything that a policy depends on; reads from and writes to TOML.

    Attributes:
        name: Of the policy.
        seed: Of everything.
        iterations: Batches of runs learned from.
        critic_first: Iterations at the start from which the critic alone learns, for a training
            that begins from a policy file.
        tasks: Tasks in a batch.
        siblings: Runs of each task, with common random numbers, other starts and actions.
        decisions: Numbers of decisions that are drawn from.
        steps_per_decision: Range of the mean window length, drawn log-uniformly.
        start_centre: Decades above the family's usual rate at which a fair start lies, by
            optimiser; 0 for those that are not named.
        near_share: Share of the starts that are drawn within 0.3 decades of a fair one.
        tuned_share: Share of the starts that lie at the task's own tuned rate. Above 0, and in
            imitation, all starts are counted from that rate, which a grid of reference runs finds
            for each task.
        grid_decades: The grid lies up to so many decades off the fair rate, either way.
        reuse: Iterations in a row that train on the same tasks, with other data orders.
        start_decades: Starts are drawn up to this many decades off a fair one, either way.
        far_share: Share of the starts that are drawn from 1.7 times that range.
        range_share: Share of the runs with a range of their own, the tuned rate and the start
            anywhere in it; all others stay within `WIDEST_START` of their start. For version 2 of
            the spec, beside ``tuned_share``.
        range_decades: Widths of these ranges, drawn log-uniformly.
        default_share: Share of the other hyperparameters that start at their default.
        aversion: Weight of what a run ends below the mean of its siblings, beyond the loss itself.
        withheld: Share of runs whose gradient statistics are withheld.
        width: Of the policy's layers.
        families: What is trained on.
        ppo: Of the update, where there is no imitation.
        imitation: Of learning by imitation of tuned rates, in the place of PPO; None: PPO.
        spec: Fields of the `ControlSpec`, hyperparameters by name.

    Raises:
        SpecError: A value is not allowed, or means nothing beside the others.
    """

    name: str = "policy"
    seed: int = 0
    iterations: int = 600
    critic_first: int = 0
    tasks: int = 32
    siblings: int = 8
    decisions: tuple[int, ...] = (12, 20, 30)
    steps_per_decision: tuple[float, float] = (5.0, 14.0)
    start_centre: dict[str, float] = field(default_factory=dict)
    near_share: float = 0.0
    tuned_share: float = 0.0
    grid_decades: float = 1.75
    reuse: int = 1
    start_decades: float = 2.4
    far_share: float = 0.15
    range_share: float = 0.0
    range_decades: tuple[float, float] = (0.2, 5.0)
    default_share: float = 0.5
    aversion: float = 1.0
    withheld: float = 0.15
    width: int = 64
    families: tuple[FamilyShare, ...] = (FamilyShare("simulated/mlp"),)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    imitation: ImitationSettings | None = None
    spec: dict[str, Any] = field(default_factory=lambda: {"hyperparameters": ["lr"]})

    def __post_init__(self) -> None:
        for name in _SHARES:
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise SpecError(f"{name}: {share!r} is outside 0..1; give a share of the runs")
        if self.reuse < 1:
            raise SpecError(f"reuse: {self.reuse} is below 1; use 1 for new tasks every iteration")
        if not self.grid_decades > 0:
            raise SpecError(f"grid_decades: {self.grid_decades!r} is not above 0; give decades")
        if not math.isfinite(self.grid_decades):
            raise SpecError(f"grid_decades: {self.grid_decades!r} is not finite; give decades")
        if self.imitation is not None:
            self._check_imitation()
        if (self.tuned_share or self.imitation) and self.siblings < _LEAST_GRID:
            raise SpecError(
                f"siblings: {self.siblings} is below {_LEAST_GRID}, the points of the grid that "
                "finds tuned rates; take more, or tuned_share = 0 and no imitation"
            )

    def _check_imitation(self) -> None:
        """Raise unless runs of one learning rate are all there is, and PPO is left alone."""
        steered = tuple(self.spec["hyperparameters"])
        if steered != _IMITATED:
            raise SpecError(
                f"hyperparameters: {list(steered)} cannot be learned by "
                'imitation, which knows tuned learning rates; name ["lr"] or leave [imitation] out'
            )
        for item in self.families:
            offered = tuple(item.options.get("hyperparameters", _IMITATED))
            if offered != _IMITATED or any(tuple(names) != _IMITATED for names in item.subsets):
                raise SpecError(
                    f"families: {item.name} offers {list(offered)} in subsets {item.subsets}; "
                    "imitation takes lr alone, so leave both out"
                )
        if self.imitation is not None and self.imitation.probe and not self.spec.get("undo"):
            raise SpecError(
                f"imitation.probe: {self.imitation.probe:g} leads above the tuned rate, in windows "
                "that nothing undoes; say undo = 0.005 under [spec], or leave probe out"
            )
        for name, unused in (("ppo", PPOSettings()), ("critic_first", 0), ("aversion", 1.0)):
            if getattr(self, name) != unused:
                raise SpecError(
                    f"{name}: {getattr(self, name)!r} means nothing to imitation; leave it out, "
                    "or leave [imitation] out"
                )


def _imitation(given: dict[str, Any]) -> ImitationSettings:
    known = [item.name for item in fields(ImitationSettings)]
    for name in given:
        if name not in known:
            raise unknown_name("setting of [imitation]", name, known)
    return ImitationSettings(**given)


def read_settings(path: str | Path) -> LearnSettings:
    """Return the settings in a TOML file.

    Raises:
        SpecError: The file cannot be read, or holds a setting that does not exist or cannot be.
        UnknownNameError: ``[imitation]`` holds a setting that does not exist.
    """
    try:
        found = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"settings {path}: {error}; name a readable TOML file") from error
    try:
        found["families"] = tuple(
            FamilyShare(
                **{
                    **item,
                    "variants": tuple(item.get("variants", ())),
                    "subsets": tuple(tuple(names) for names in item.get("subsets", ())),
                }
            )
            for item in found.pop("families")
        )
        found["ppo"] = PPOSettings(**found.pop("ppo", {}))
        if "imitation" in found:
            found["imitation"] = _imitation(found["imitation"])
        for name in ("decisions", "steps_per_decision"):
            if name in found:
                found[name] = tuple(found[name])
        return LearnSettings(**found)
    except KeyError as error:
        raise SpecError(
            f"settings {path}: {error} is missing; see the file beside a shipped policy"
        ) from error
    except TypeError as error:
        raise SpecError(
            f"settings {path}: {error}; see the file beside a shipped policy"
        ) from error
