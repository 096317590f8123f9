"""APGR and CPT as arXiv 2406.18665 defines them, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

THRESHOLDS = 11


def curve(score: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of strong calls and share of the gap recovered, at the 0, 10 ... 100 % quantiles of
    the scores: those at or above a threshold go to the strong model, at the last those above."""
    low, high = weak.mean(), strong.mean()
    shares, recovered = [], []
    for i, threshold in enumerate(np.quantile(score, np.linspace(0, 1, THRESHOLDS))):
        sent = score > threshold if i == THRESHOLDS - 1 else score >= threshold
        shares.append(sent.mean())
        recovered.append((np.where(sent, strong, weak).mean() - low) / (high - low))
    order = np.argsort(shares, kind="stable")
    return np.array(shares)[order], np.array(recovered)[order]


def apgr(score: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> float:
    """Area under the gap recovered over the share of strong calls; 0.5 by chance."""
    x, y = curve(score, weak, strong)
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2))


def cpt(score: np.ndarray, weak: np.ndarray, strong: np.ndarray, share: float) -> float:
    """Percent of strong calls that recovers `share` of the gap, linear between the points."""
    x, y = curve(score, weak, strong)
    for i in range(1, len(x)):
        if y[i] >= share > y[i - 1]:
            part = (share - y[i - 1]) / (y[i] - y[i - 1])
            return float(100 * (x[i - 1] + part * (x[i] - x[i - 1])))
    return 100.0


def local_share(score: np.ndarray, weak: np.ndarray, strong: np.ndarray, quality: float) -> float:
    """Greatest share kept local while quality stays at `quality` of the strong model's."""
    order = np.argsort(score, kind="stable")
    lost = np.cumsum((strong - weak)[order])
    kept = np.flatnonzero(strong.sum() - lost >= quality * strong.sum())
    return float((kept[-1] + 1) / len(score)) if len(kept) else 0.0


def ranked(score: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> float:
    """APGR of the exact curve (every threshold): steadier, used for intervals and averages."""
    gain = strong - weak
    place = (np.argsort(np.argsort(score, kind="stable")) + 0.5) / len(score)
    return float((gain * place).sum() / gain.sum())


def interval(score: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `ranked`."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(300):
        pick = draw.integers(0, len(score), len(score))
        if (strong - weak)[pick].sum() > 0:
            found.append(ranked(score[pick], weak[pick], strong[pick]))
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def figures(score: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> dict[str, float]:
    low, high = interval(score, weak, strong)
    return {
        "apgr": round(apgr(score, weak, strong), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "cpt50": round(cpt(score, weak, strong, 0.5), 2),
        "cpt80": round(cpt(score, weak, strong, 0.8), 2),
        "local95": round(100 * local_share(score, weak, strong, 0.95), 1),
    }
