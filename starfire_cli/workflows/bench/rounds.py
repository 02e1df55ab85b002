"""Times several engines in interleaved rounds, so that noise on the machine affects all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter, sleep

from starfire_cli.text import reason

ROUNDS = 10
LEAST = 5  # rounds, however long a call takes
_REST = 0.02  # seconds before each turn: the threads of whoever ran before look for work a while before they sleep
_LONG = 0.1  # seconds of a call to which it makes no difference what others have left in the caches

Taken = tuple[tuple[float, ...], ...]


def time_in_rounds(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Taken | str]:
    """Times every engine in rounds: the seconds of every call by round, or the reason of failure.

    In each round every way has a turn of `seconds` / `ROUNDS`, at least one call; whoever begins differs from round to
    round. A turn begins with a call that is not counted, where calls are short.

    Args:
        runs: by name; each has been called before.
        seconds: that each should get in all.
    """
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    spent = 0.0
    for number in range(ROUNDS):
        going = [name for name in runs if name not in failed]
        if not going or (number >= LEAST and spent >= seconds * len(going)):
            break
        first = number % len(going)
        for name in (*going[first:], *going[:first]):
            try:
                turn = _turn(runs[name], seconds / ROUNDS)
            except Exception as error:  # noqa: BLE001 - other people's engines may raise anything
                failed[name] = reason(error)
                continue
            taken[name].append(turn)
            spent += sum(turn)
    return {name: failed.get(name) or tuple(taken[name]) for name in runs}


def _turn(run: Callable[[], object], seconds: float) -> tuple[float, ...]:
    sleep(_REST)
    taken = [_timed(run)]
    if taken[0] < _LONG:
        taken = []
    spent = sum(taken)
    while not taken or spent < seconds:
        taken.append(_timed(run))
        spent += taken[-1]
    return tuple(taken)


def _timed(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started
