"""Many robust fits of one form at once: Levenberg-Marquardt on logarithms, with Huber's loss, over a batch of starts or tables.

scipy.optimize.least_squares (loss="huber") minimises the same, one fit at a time: a bootstrap of 400 would take many seconds,
the trials of intervals hours. A batch of arrays takes 400 in about .2 s. The tests hold it against scipy's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..certainty import FloatArray

Logs = Callable[[FloatArray], FloatArray]
"""theta ``[R, P]`` -> logarithms of what is predicted ``[R, runs]``."""
_STEP = 1e-6  # of a numerical derivative, in logarithms of constants: rounding and curvature are each about 1e-9
_DONE = 1e-10  # relative gain of a step after which a fit is left alone
_STUCK = 1e8  # damping beyond which no step helps


def huber_loss(residual: FloatArray, delta: float) -> FloatArray:
    """``r^2 / 2`` up to ``delta``, ``delta (|r| - delta / 2)`` beyond it."""
    size = np.abs(residual)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def jacobian(logs: Logs, theta: FloatArray) -> FloatArray:
    """d logs / d theta by central differences, ``[R, runs, P]``; in one call, since calls cost more than numbers."""
    rows, number = theta.shape
    moves = _STEP * np.eye(number)
    both = logs((theta + np.stack([moves, -moves])[:, :, None]).reshape(-1, number)).reshape(2, number, rows, -1)
    return np.moveaxis((both[0] - both[1]) / (2 * _STEP), 0, -1)


def solve(
    logs: Logs,
    log_y: FloatArray,
    start: FloatArray,
    bounds: tuple[FloatArray, FloatArray],
    delta: float,
    weight: FloatArray | None = None,
    steps: int = 200,
) -> tuple[FloatArray, FloatArray]:
    """``argmin_theta sum_i weight_i huber_loss(logs_i - log_y_i, delta)`` within ``bounds``: (theta ``[R, P]``, cost ``[R]``).

    ``log_y`` and ``weight`` are ``[R, runs]`` or ``[runs]``; a weight of 0 leaves a run out. A batch's fits do not know each
    other: each is what it would be alone.
    """
    theta = np.clip(start, *bounds).astype(np.float64)
    wanted = np.broadcast_to(log_y, (len(theta), np.shape(log_y)[-1]))
    weights = np.ones_like(wanted) if weight is None else np.broadcast_to(weight, wanted.shape)
    residual = logs(theta) - wanted
    cost = (weights * huber_loss(residual, delta)).sum(1)
    damping, at_work = np.full(len(theta), 1e-2), np.isfinite(cost)
    for _ in range(steps):
        if not (rows := np.flatnonzero(at_work)).size:
            break
        here = theta[rows]
        tried = np.clip(here + _move(logs, here, residual[rows], weights[rows], damping[rows], bounds, delta), *bounds)
        found = logs(tried) - wanted[rows]
        now = (weights[rows] * huber_loss(found, delta)).sum(1)
        better = now < cost[rows]
        gain = (cost[rows] - now) / np.maximum(cost[rows], 1e-300)
        took = rows[better]
        theta[took], residual[took], cost[took] = tried[better], found[better], now[better]
        damping[rows] = np.where(better, np.maximum(damping[rows] / 5, 1e-9), damping[rows] * 4)
        at_work[rows] = ~((better & (gain < _DONE)) | (damping[rows] > _STUCK))
    return theta, cost


def _move(
    logs: Logs,
    theta: FloatArray,
    residual: FloatArray,
    weight: FloatArray,
    damping: FloatArray,
    bounds: tuple[FloatArray, FloatArray],
    delta: float,
) -> FloatArray:
    """The damped Gauss-Newton step of the reweighted squares; a constant at a bound that would leave it stays."""
    slope = jacobian(logs, theta)
    weighted = slope * (weight * np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300)))[..., None]
    down = -np.einsum("rnp,rn->rp", weighted, residual)
    held = ((theta <= bounds[0]) & (down < 0)) | ((theta >= bounds[1]) & (down > 0))
    curvature = np.einsum("rnp,rnq->rpq", weighted, slope)
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    diagonal = np.einsum("rpp->rp", curvature)  # a view: what is written stands in the matrix
    diagonal += damping[:, None] * diagonal + 1e-15
    diagonal[held] = 1.0
    return np.linalg.solve(curvature, np.where(held, 0.0, down)[..., None])[..., 0]
