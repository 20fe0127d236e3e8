#!/usr/bin/env python3
"""Statistics of evaluation as scipy, statsmodels and scikit-learn have them.

    python tests/parity/evaluation_statistics.py

writes tests/golden/eval/statistics.json. Made with scipy 1.17.1, statsmodels 0.15.0, scikit-learn 1.9.1 and numpy 2.4.6;
lm-eval 0.4.13 is not needed: its two formulas are written out below. What none of them has (calibration errors, AURC,
the clustered standard error by its double sum) is computed here in the plainest way. A file named statistics.py would
stand in for Python's own module in every script of this folder.
"""

import json
import pathlib
import warnings

import numpy as np
import scipy
import sklearn
import statsmodels
import statsmodels.api as sm
from scipy import optimize, special, stats
from scipy.stats import _resampling
from sklearn import calibration, metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/eval/statistics.json"
RNG = np.random.default_rng(20261126)


def rounded(values, digits=4):
    return np.round(values, digits)


def summary():
    values = rounded(RNG.gamma(2.0, 0.2, 37))
    stderrs, sizes = np.array([0.0218, 0.0119, 0.0068, 0.031, 0.0]), np.array([500, 1273, 4183, 100, 3])
    scores = np.array([0.614, 0.2341, 0.2658, 0.28, 1.0])
    # lm_eval/api/metrics.py, pooled_sample_stderr and unweighted_mean_stderr
    variance = sum((size - 1) * stderr**2 * size for size, stderr in zip(sizes, stderrs)) / (sum(sizes) - len(sizes))
    levels = [0, 0.025, 0.31, 0.5, 0.975, 1]
    return {
        "values": values, "mean": np.mean(values), "sd": np.std(values, ddof=1), "stderr": stats.sem(values),
        "levels": levels, "quantiles": np.quantile(values, levels),
        "scores": scores, "stderrs": stderrs, "sizes": sizes, "weighted_mean": np.average(scores, weights=sizes),
        "pooled_stderr": np.sqrt(variance / sum(sizes)),
        "unweighted_mean_stderr": np.sqrt(sum(stderrs**2)) / len(stderrs),
    }


def normal():
    z = np.array([-8.5, -6.0, -3.3, -1.96, -0.5, -1e-3, 0.0, 0.2, 1.0, 2.5758, 5.0])
    p = np.array([1e-12, 1e-6, 0.001, 0.025, 0.1, 0.4999, 0.5, 0.6, 0.8, 0.975, 0.999999])
    return {"z": z, "cdf": stats.norm.cdf(z), "p": p, "quantile": stats.norm.ppf(p)}


def rates():
    cases = []
    counts = [(0, 10, 0.95), (10, 10, 0.95), (307, 500, 0.95), (1, 3, 0.9), (1850, 4183, 0.99)]
    for successes, trials, confidence in counts:
        interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        other = proportion_confint(successes, trials, 1 - confidence, method="wilson")
        assert np.allclose(interval, other, atol=1e-12)
        cases.append({"successes": successes, "trials": trials, "confidence": confidence, "interval": list(interval)})
    return cases


def mcnemar_cases():
    cases = []
    counts = [(0, 0), (0, 1), (3, 3), (2, 9), (41, 59), (12, 40), (700, 610), (5000, 5230), (2, 400), (30000, 30801)]
    for first, second in counts:
        p = mcnemar([[50, first], [second, 50]], exact=True).pvalue
        if first + second:
            assert np.isclose(p, stats.binomtest(first, first + second, 0.5).pvalue, rtol=1e-9)
        cases.append({"only_baseline": first, "only_candidate": second, "p": p})
    return cases


def holm():
    cases = [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.8], [0.04], [0.02, 0.02, 0.02, 0.3, 1e-9, 0.02, 0.051]]
    return [{"p": p, "adjusted": multipletests(p, method="holm")[1]} for p in cases]


def power():
    cases = []
    for items, sd in [(500, np.sqrt(0.2)), (1273, 0.31), (40, 1.7)]:
        for alpha, power in [(0.05, 0.8), (0.01, 0.95)]:
            difference = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * sd / np.sqrt(items)
            # One tail of half the level: the chance of a significant difference of the wrong sign does not count.
            shown = NormalIndPower().power(difference / sd, items, alpha / 2, ratio=0, alternative="larger")
            assert np.isclose(shown, power, rtol=1e-12)
            cases.append({"items": items, "sd": sd, "alpha": alpha, "power": power, "difference": difference})
    return cases


def bca_parts(data, statistic, result):
    """The estimate, z0 and a, as `scipy.stats.bootstrap` computes them on the way: of pairs, it draws the indices."""
    def of_indices(indices, axis):
        return statistic(*[x[indices] for x in data], axis=axis)

    indices = np.arange(len(data[0]))
    acceleration = _resampling._bca_interval(
        [indices], of_indices, -1, 0.025, result.bootstrap_distribution, None, xp=np)[2]
    estimate = of_indices(indices, -1)
    share = stats.percentileofscore(result.bootstrap_distribution, estimate, kind="mean") / 100
    return estimate, special.ndtri(share), acceleration


def bootstrap(data, statistic, resamples, stored):
    settings = dict(paired=True, vectorized=True, confidence_level=0.95)
    few = stats.bootstrap(data, statistic, n_resamples=stored, method="percentile", rng=RNG, **settings)
    few_bca = stats.bootstrap(data, statistic, n_resamples=0, bootstrap_result=few, method="BCa", **settings)
    many = stats.bootstrap(data, statistic, n_resamples=resamples, method="percentile", rng=RNG, batch=20000,
                           **settings)
    many_bca = stats.bootstrap(data, statistic, n_resamples=0, bootstrap_result=many, method="BCa", **settings)
    estimate, z0, acceleration = bca_parts(data, statistic, few)
    return {
        "estimate": estimate, "resampled": few.bootstrap_distribution, "z0": z0, "acceleration": acceleration,
        "percentile": list(few.confidence_interval), "bca": list(few_bca.confidence_interval),
        "many": {"resamples": resamples, "stderr": many.standard_error,
                 "percentile": list(many.confidence_interval), "bca": list(many_bca.confidence_interval)},
    }


def mean_of_one(x, axis):
    return np.mean(x, axis=axis)


def mean_of_clusters(sums, sizes, axis):
    return np.sum(sums, axis=axis) / np.sum(sizes, axis=axis)


def sign_flip_p(differences):
    test = stats.permutation_test((differences, np.zeros(len(differences))), lambda x, y, axis: np.sum(x - y, axis=axis),
                                  permutation_type="samples", n_resamples=np.inf, vectorized=True)
    return test.pvalue


def sign_flip_p_of_many(differences):
    """Exact p of differences in thousandths: the number of signs for each sum, by convolution."""
    thousandths = [int(round(d * 1000)) for d in differences]
    assert np.allclose(thousandths, np.asarray(differences) * 1000)
    ways = {0: 1}
    for d in thousandths:
        added = {}
        for total, count in ways.items():
            for signed in (total + d, total - d):
                added[signed] = added.get(signed, 0) + count
        ways = added
    observed = abs(sum(thousandths))
    return sum(count for total, count in ways.items() if abs(total) >= observed) / 2 ** len(thousandths)


def paired():
    """Scores with a long tail, some tied: the interval of their mean difference is skewed."""
    baseline = rounded(RNG.beta(2, 5, 40), 3)
    candidate = rounded(np.clip(baseline + RNG.exponential(0.12, 40) ** 1.6 - 0.02, 0, 1), 3)
    candidate[3:8] = baseline[3:8]
    differences = candidate - baseline
    return {
        "baseline": baseline, "candidate": candidate, "difference": np.mean(differences), "stderr": stats.sem(differences),
        "p": sign_flip_p_of_many(differences),
        "bootstrap": bootstrap((differences,), mean_of_one, 400_000, 999),
    }


def few_pairs():
    """So few that all signs are tried; with ties, zeros and sums that tie but for rounding."""
    baseline = np.array([0.1, 0.5, 0.3, 0.7, 0.2, 0.6, 0.4, 0.9, 0.3, 0.5, 0.8, 0.2, 0.1])
    candidate = np.array([0.3, 0.6, 0.3, 0.8, 0.1, 0.9, 0.5, 0.8, 0.6, 0.5, 0.9, 0.5, 0.3])
    p = sign_flip_p(candidate - baseline)
    assert np.isclose(p, sign_flip_p_of_many(candidate - baseline), rtol=1e-14)
    return {"baseline": baseline, "candidate": candidate, "p": p}


def binary():
    baseline = (RNG.random(150) < 0.55).astype(float)
    candidate = np.where(RNG.random(150) < 0.3, RNG.random(150) < 0.75, baseline).astype(float)
    only = int(np.sum(baseline > candidate)), int(np.sum(candidate > baseline))
    return {"baseline": baseline.astype(int), "candidate": candidate.astype(int), "only_baseline": only[0],
            "only_candidate": only[1], "p": mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue,
            "stderr": stats.sem(candidate - baseline)}


def clustered():
    """Unlike sizes, items of a cluster alike, ids neither sorted nor without gaps."""
    clusters = RNG.choice([3, 5, 8, 9, 14, 20, 21, 40, 77, 78, 90, 91, 92, 93], 60)
    baseline = rounded(RNG.random(60), 3)
    shift = {c: RNG.exponential(0.3) for c in np.unique(clusters)}
    candidate = rounded(baseline + [shift[c] for c in clusters] + RNG.normal(-0.2, 0.1, 60), 3)
    differences = candidate - baseline
    n, residuals = len(differences), differences - np.mean(differences)
    variance = np.var(differences, ddof=1) / n
    for i in range(n):
        for j in range(n):
            if i != j and clusters[i] == clusters[j]:
                variance += residuals[i] * residuals[j] / n**2
    ids = np.unique(clusters)
    sums = np.array([np.sum(differences[clusters == c]) for c in ids])
    sizes = np.array([float(np.sum(clusters == c)) for c in ids])
    robust = sm.OLS(differences, np.ones(n)).fit(
        cov_type="cluster", cov_kwds={"groups": np.unique(clusters, return_inverse=True)[1], "use_correction": False})
    return {
        "clusters": clusters, "baseline": baseline, "candidate": candidate, "difference": np.mean(differences),
        "stderr": np.sqrt(variance), "cr0": robust.bse[0], "sums": sums, "sizes": sizes, "p": sign_flip_p(sums),
        "bootstrap": bootstrap((sums, sizes), mean_of_clusters, 400_000, 499),
    }


def calibration_errors(confidence, correct, parts):
    gaps = [len(part) * abs(np.mean(correct[part]) - np.mean(confidence[part])) for part in parts if len(part)]
    return sum(gaps) / len(confidence)


def bins_of_equal_width(confidence, bins=15):
    places = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    return [np.flatnonzero(places == b) for b in range(bins)]


def calibrated():
    n, options = 157, 4
    targets = RNG.integers(0, options, n)
    logits = RNG.normal(0, 1.5, (n, options))
    logits[np.arange(n), targets] += 1.2
    logits = rounded(logits * 1.7, 3)
    logits[10] = logits[9]
    probabilities = special.softmax(logits, axis=1)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    correct = (predicted == targets).astype(float)
    wide = bins_of_equal_width(confidence)
    massive = np.array_split(np.argsort(confidence, kind="stable"), 15)
    accuracy, mean_confidence = calibration.calibration_curve(correct, confidence, n_bins=15, strategy="uniform")
    occupied = [part for part in wide if len(part)]
    assert np.allclose(accuracy, [np.mean(correct[part]) for part in occupied])
    assert np.allclose(mean_confidence, [np.mean(confidence[part]) for part in occupied])
    order = np.argsort(-confidence, kind="stable")
    risks = np.cumsum(1 - correct[order]) / np.arange(1, n + 1)

    def slope(log_t):
        scaled = special.softmax(logits / np.exp(log_t), axis=1)
        return np.mean(np.sum(scaled * logits, axis=1) - logits[np.arange(n), targets])

    temperature = np.exp(optimize.brentq(slope, -3, 3, xtol=1e-15, rtol=1e-15))
    return {
        "logits": logits, "targets": targets, "predicted": predicted, "accuracy": metrics.accuracy_score(targets, predicted),
        "brier": metrics.brier_score_loss(targets, probabilities, labels=range(options), scale_by_half=False),
        "nll": metrics.log_loss(targets, probabilities, labels=range(options)),
        "ece_equal_width": calibration_errors(confidence, correct, wide),
        "ece_equal_mass": calibration_errors(confidence, correct, massive),
        "bins": {"counts": [len(part) for part in wide], "accuracy": accuracy, "mean_confidence": mean_confidence},
        "mass_bins": {"counts": [len(part) for part in massive], "accuracy": [np.mean(correct[part]) for part in massive],
                      "mean_confidence": [np.mean(confidence[part]) for part in massive]},
        "aurc": np.mean(risks), "accuracy_at_80": np.mean(correct[order[: int(np.ceil(0.8 * n - 1e-9))]]),
        "temperature": temperature,
        "nll_after": metrics.log_loss(targets, special.softmax(logits / temperature, axis=1), labels=range(options)),
    }


def classification():
    cases = []
    for n, classes, shown in [(200, 4, 4), (60, 3, 2), (30, 2, 2), (25, 5, 5)]:
        targets = RNG.choice(shown, n, p=np.arange(1, shown + 1) / sum(range(1, shown + 1)))
        predicted = np.where(RNG.random(n) < 0.5, targets, RNG.integers(0, classes, n))
        cases.append((predicted, targets))
    # A class that is never right, one that is never chosen, and a constant answer.
    cases += [([0, 0, 2, 2, 0], [0, 1, 0, 1, 0]), ([3, 3, 3, 3], [3, 1, 2, 3])]
    return [{
        "predicted": predicted, "targets": targets, "accuracy": metrics.accuracy_score(targets, predicted),
        # It warns of classes that are never right, and leaves them out.
        "balanced_accuracy": metrics.balanced_accuracy_score(targets, predicted),
        "macro_f1": metrics.f1_score(targets, predicted, average="macro", zero_division=0),
        "mcc": metrics.matthews_corrcoef(targets, predicted),
        "best_constant": np.bincount(targets).argmax(), "majority_share": np.bincount(targets).max() / len(targets),
    } for predicted, targets in cases]


def plain(value):
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(x) for x in value]
    return value.item() if isinstance(value, np.generic) else value


def main():
    warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
    versions = {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__, "scikit-learn": sklearn.__version__,
                "numpy": np.__version__}
    golden = {
        "made_by": "tests/parity/evaluation_statistics.py", "versions": versions, "summary": summary(), "normal": normal(),
        "wilson": rates(), "mcnemar": mcnemar_cases(), "holm": holm(), "power": power(), "paired": paired(),
        "few_pairs": few_pairs(), "binary": binary(), "clustered": clustered(), "calibration": calibrated(),
        "classification": classification(),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(plain(golden), separators=(",", ":")) + "\n")


main()
