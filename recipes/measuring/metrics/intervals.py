"""95 % intervals: Wilson's for a share of questions, the bootstrap for everything else.

Both take questions as independent. Those about one picture are not quite, so true intervals are a little wider.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np


Z = 1.959963984540054  # of the normal distribution, 2.5 % lie above
RESAMPLES, SEED = 2000, 0
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """None where it is not defined, such as the precision of a model that never says yes."""

    value: float | None
    low: float | None = None
    high: float | None = None


def share(hits: int, total: int) -> Estimate:
    """hits / total, with Wilson's score interval."""
    if not total:
        return Estimate(None)
    p, spread = hits / total, Z * Z / total
    centre = (p + spread / 2) / (1 + spread)
    half = Z * sqrt(p * (1 - p) / total + spread / (4 * total)) / (1 + spread)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def mean(scores: Iterable[float]) -> Estimate:
    """The mean of scores from 0 to 1, with the percentile bootstrap over questions."""
    counted = Counter(scores)
    values = np.array(list(counted))
    total = counted.total()
    if not total:
        return Estimate(None)
    return bootstrap([list(counted.values())], lambda counts: counts[0] @ values / total)


def bootstrap(strata: Sequence[Sequence[int]], statistic: Callable[[list[np.ndarray]], np.ndarray]) -> Estimate:
    """A statistic of how many questions came out in each way, with the percentile bootstrap.

    Drawing questions again with replacement draws these counts from a multinomial, so no question is drawn singly.

    Args:
        strata: counts of outcomes, those of each stratum drawn apart.
        statistic: of counts (resamples, outcomes) for each stratum to (resamples,); nan where it is not defined.
    """
    generator = np.random.default_rng(SEED)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic([np.array([counts]) for counts in strata])[0])
        if np.isnan(value):
            return Estimate(None)
        drawn = [generator.multinomial(sum(c), np.array(c) / sum(c), RESAMPLES) for c in strata]
        low, high = np.nanpercentile(statistic(drawn), PERCENTILES)
    return Estimate(value, float(low), float(high))
