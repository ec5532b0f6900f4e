"""The hyperparameters of one training run, step by step, to be replayed with PyTorch.

Written by trimtab, and used without it; ABOUT says of which run.
The run went back to an earlier state 1 times, which undid 2 steps (lost in ABOUT,
counted from 0). They are left out: these are the 38 steps that led to its last weights.
Validation was best after 38 of these steps.
The data's order and random state are not replayed, only the values.

`Schedule` is an ordinary learning-rate scheduler:

    from schedule_torch import N_STEPS, Schedule

    schedule = Schedule(optimizer)  # writes the values of the first step
    for x, y in batches:  # N_STEPS of them
        loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()  # writes the values of the next step

It writes what lives in the optimizer's parameter groups: learning rate, weight decay, momentum
and the first of Adam's betas. Groups that begin with other values than the first one keep their
ratio to it (momentum and beta: the ratio of what is missing to 1); groups at 0 stay at 0. Every
other hyperparameter needs a function that applies it, or None to leave it out:

    schedule = Schedule(optimizer, apply={"dropout": set_dropout, "clip": None})

A hyperparameter that the run did not steer is not here: its optimizer setting is left alone, and
a learning rate that is not in VALUES is left to a scheduler of your own. More steps than N_STEPS
stay at the last values. VALUES holds float64, exact to the last bit.
"""

from torch.optim.lr_scheduler import LRScheduler

ABOUT = {
    "run": 1,
    "status": "finished",
    "task": "simulated/quadratic@0",
    "variant": "tiny",
    "policy": "old-policy",
    "reference": "warmup-linear",
    "seed": 2,
    "monitor": "loss",
    "mode": "min",
    "total_steps": 40,
    "watch_only": False,
    "start": {
        "lr": 0.04256300169413774,
    },
    "trimtab": "0.1.0",
    "replays": "surviving steps",
    "lost": [[4, 5]],
    "best_after": 38,
    "rebuilt": False,
}
KINDS = {
    "lr": "lr",
}
PLACES = {
    "lr": "lr",
}
N_STEPS = 38
VALUES = {
    "lr": [
        0.00021713761417947074, 0.00042341834764996795, 0.0019619331444804674,
        0.0019103033248888763, 0.0016620569597683298, 0.0016131729315398493, 0.0015642889033113693,
        0.001515404875082889, 0.0014905232328495908, 0.0014408391250879378, 0.0013911550173262848,
        0.001341470909564632, 0.001291786801802979, 0.0012720174282428336, 0.0012211367311131202,
        0.0011702560339834067, 0.0011193753368536937, 0.0010684946397239803, 0.001039010283674524,
        0.0009870597694907977, 0.0009351092553070714, 0.0008831587411233454, 0.0008312082269396192,
        0.0007986638541640382, 0.000745419597219769, 0.0006921753402754997, 0.0006389310833312307,
        0.0005856868263869614, 0.000546322118178783, 0.0004916899063609046, 0.00043705769454302625,
        0.0003824254827251482, 0.0003277932709072698, 0.0002795006063290461, 0.00022360048506323685,
        0.00016770036379742758, 0.00011180024253161855, 5.5900121265809274e-05,
    ],
}


def value(name, step):
    """Return a hyperparameter's value at a step, the first being 0; the last one stays."""
    return VALUES[name][min(max(int(step), 0), N_STEPS - 1)]


class Schedule(LRScheduler):
    """Writes the recorded values of each step into an optimizer.

    Args:
        optimizer: A torch.optim.Optimizer.
        last_epoch: Steps done before, minus 1; -1 begins.
        apply: Name -> function of one float, for what does not live in parameter groups.

    Raises:
        ValueError: A name of `apply` is not in VALUES, or one that needs a function has none, or
            the optimizer has no place for a recorded value.
    """

    def __init__(self, optimizer, last_epoch=-1, apply=None):
        self._apply = dict(apply or {})
        _check(optimizer, self._apply)
        groups = optimizer.param_groups
        key = "lr" if last_epoch == -1 else "initial_lr"
        self.starts = {
            place: [_read(group, key if place == "lr" else place) for group in groups]
            for place, name in PLACES.items()
            if name not in self._apply
        }
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        """Return each group's learning rate at the coming step."""
        if "lr" not in self.starts:
            return [group["lr"] for group in self.optimizer.param_groups]
        return _moved(self.starts["lr"], value(PLACES["lr"], self.last_epoch), _by_ratio)

    def step(self, epoch=None):
        """Move on to the next step's values."""
        super().step() if epoch is None else super().step(epoch)
        for place, starts in self.starts.items():
            if place == "lr":
                continue
            rule = _by_ratio if place == "weight_decay" else _by_complement
            moved = _moved(starts, value(PLACES[place], self.last_epoch), rule)
            for group, start, number in zip(self.optimizer.param_groups, starts, moved):
                if start:
                    _write(group, place, number)
        for name, function in self._apply.items():
            if function is not None:
                function(value(name, self.last_epoch))

    def state_dict(self):
        """Return the state without the functions, which are yours."""
        return {key: item for key, item in super().state_dict().items() if key != "_apply"}


def _check(optimizer, apply):
    unknown = sorted(set(apply) - set(VALUES))
    if unknown:
        raise ValueError(f"apply: {unknown} are not recorded; there are {sorted(VALUES)}")
    missing = sorted(set(VALUES) - set(PLACES.values()) - set(apply))
    if missing:
        raise ValueError(
            f"apply: {missing} do not live in parameter groups; give each a function of one "
            "float, or None to leave it out"
        )
    for place, name in PLACES.items():
        if name not in apply and not any(_read(group, place) for group in optimizer.param_groups):
            raise ValueError(
                f"{name!r}: no parameter group has a {place} above 0 to be replaced; give it one, "
                f"or leave it out with apply={{{name!r}: None}}"
            )


def _read(group, place):
    if place == "beta1":
        return float(group["betas"][0]) if "betas" in group else 0.0
    return float(group.get(place) or 0.0)


def _write(group, place, number):
    if place == "beta1":
        first = group["betas"][0]
        if hasattr(first, "fill_"):
            first.fill_(number)
        else:
            group["betas"] = (number, *group["betas"][1:])
    elif hasattr(group[place], "fill_"):
        group[place].fill_(number)
    else:
        group[place] = number


def _moved(starts, number, rule):
    """Return each group's value: the recorded one where the group begins as the first does."""
    lead = next(start for start in starts if start)
    return [number if start == lead else rule(start, lead, number) for start in starts]


def _by_ratio(start, lead, number):
    return start * (number / lead)


def _by_complement(start, lead, number):
    return 1.0 - (1.0 - start) * ((1.0 - number) / (1.0 - lead)) if start else 0.0
