//! Statistics of evaluation against scipy, statsmodels and scikit-learn.

use crate::support::{floats, golden, json};
use equipoise::statistics::{
    Binning, CALIBRATION_BINS, Confusion, Interval, PairedComparison, Predictions, ReliabilityBin, Resampling,
    acceleration, bca_interval, bias_correction, clustered_stderr, compare_paired, fit_temperature, holm, jackknife,
    least_detectable_difference, mcnemar, mean, mean_stderr, normal_cdf, normal_quantile, percentile_interval,
    pooled_stderr, quantile, sample_standard_deviation, unweighted_mean_stderr, weighted_mean, wilson_interval,
};
use serde_json::Value;

fn expected(part: &str) -> Value {
    json(&golden("eval/statistics.json"))[part].clone()
}

fn indices(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

fn cases(part: &str) -> Vec<Value> {
    let cases = expected(part).as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Equal within a part of the expected number, or as small.
#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (found - expected).abs();
    assert!(error <= tolerance * expected.abs() || error < 1e-15, "{what}: {found} is not {expected}");
}

#[track_caller]
fn assert_close(found: Option<f64>, expected: &Value, what: &str) {
    assert_near(found.unwrap(), number(expected), 1e-11, what);
}

#[track_caller]
fn assert_interval(found: Option<Interval>, expected: &Value, tolerance: f64, what: &str) {
    let (found, expected) = (found.unwrap(), floats(expected));
    let error = (found.low - expected[0]).abs().max((found.high - expected[1]).abs());
    assert!(error <= tolerance, "{what}: {found:?} is not {expected:?} within {tolerance}");
}

#[test]
fn means_and_standard_errors() {
    let golden = expected("summary");
    let values = floats(&golden["values"]);
    assert_close(mean(&values), &golden["mean"], "mean");
    assert_close(sample_standard_deviation(&values), &golden["sd"], "standard deviation");
    assert_close(mean_stderr(&values), &golden["stderr"], "standard error");
    let mut ascending = values;
    ascending.sort_by(f64::total_cmp);
    for (level, expected) in floats(&golden["levels"]).into_iter().zip(golden["quantiles"].as_array().unwrap()) {
        assert_close(quantile(&ascending, level), expected, "quantile");
    }
    let (stderrs, sizes) = (floats(&golden["stderrs"]), indices(&golden["sizes"]));
    assert_close(weighted_mean(&floats(&golden["scores"]), &sizes), &golden["weighted_mean"], "weighted mean");
    assert_close(pooled_stderr(&stderrs, &sizes), &golden["pooled_stderr"], "pooled");
    assert_close(unweighted_mean_stderr(&stderrs), &golden["unweighted_mean_stderr"], "unweighted");
}

#[test]
fn the_normal_distribution() {
    let golden = expected("normal");
    for (z, p) in floats(&golden["z"]).into_iter().zip(floats(&golden["cdf"])) {
        assert_near(normal_cdf(z), p, 1e-13, &format!("cdf of {z}"));
    }
    for (p, z) in floats(&golden["p"]).into_iter().zip(floats(&golden["quantile"])) {
        assert_near(normal_quantile(p), z, 1e-13, &format!("quantile of {p}"));
    }
}

#[test]
fn rates_p_values_and_power() {
    for case in cases("wilson") {
        let interval = wilson_interval(count(&case["successes"]), count(&case["trials"]), number(&case["confidence"]));
        assert_interval(interval, &case["interval"], 1e-13, &case.to_string());
    }
    for case in cases("mcnemar") {
        let p = mcnemar(count(&case["only_baseline"]), count(&case["only_candidate"])).p;
        assert_near(p, number(&case["p"]), 1e-9, &case.to_string());
    }
    for case in cases("holm") {
        for (found, expected) in holm(&floats(&case["p"])).into_iter().zip(floats(&case["adjusted"])) {
            assert_near(found, expected, 1e-14, &case.to_string());
        }
    }
    for case in cases("power") {
        let [sd, alpha, power] = ["sd", "alpha", "power"].map(|key| number(&case[key]));
        let least = least_detectable_difference(count(&case["items"]), sd, alpha, power).unwrap();
        assert_near(least, number(&case["difference"]), 1e-9, &case.to_string());
    }
}

/// The parts of both intervals, and the intervals themselves, on resamples that scipy drew.
fn assert_intervals_of_given_resamples(golden: &Value, jackknife: &[f64]) {
    let (resampled, estimate) = (floats(&golden["resampled"]), number(&golden["estimate"]));
    assert_close(bias_correction(&resampled, estimate), &golden["z0"], "z0");
    assert_near(acceleration(jackknife).unwrap(), number(&golden["acceleration"]), 1e-10, "acceleration");
    assert_interval(percentile_interval(&resampled, 0.95), &golden["percentile"], 1e-13, "percentile");
    assert_interval(bca_interval(&resampled, estimate, jackknife, 0.95), &golden["bca"], 1e-11, "BCa");
}

#[test]
fn intervals_of_given_resamples() {
    let golden = expected("paired");
    let (baseline, candidate) = (floats(&golden["baseline"]), floats(&golden["candidate"]));
    let mean = |items: &[usize]| items.iter().map(|&i| candidate[i] - baseline[i]).sum::<f64>() / items.len() as f64;
    assert_intervals_of_given_resamples(&golden["bootstrap"], &jackknife(baseline.len(), mean));

    let golden = expected("clustered");
    let (sums, sizes) = (floats(&golden["sums"]), floats(&golden["sizes"]));
    let total = |values: &[f64], clusters: &[usize]| clusters.iter().map(|&c| values[c]).sum::<f64>();
    let mean = |clusters: &[usize]| total(&sums, clusters) / total(&sizes, clusters);
    assert_intervals_of_given_resamples(&golden["bootstrap"], &jackknife(sums.len(), mean));
}

fn compare(golden: &Value, clusters: Option<&[usize]>, resampling: &Resampling) -> PairedComparison {
    compare_paired(&floats(&golden["baseline"]), &floats(&golden["candidate"]), clusters, resampling).unwrap()
}

/// Our draws against scipy's. With `B` draws of a nearly normal statistic of standard error `σ`, its 2.5 % quantile has the
/// standard deviation `√(0.025·0.975/B)/φ(1.96)·σ = 2.67·σ/√B`; `z0` adds `2·√(0.25/B)/φ(0)·σ = 2.51·σ/√B` to an end of
/// `BCa`. Five standard deviations of the difference are allowed.
fn assert_intervals_of_own_draws(compared: &PairedComparison, golden: &Value, resamples: usize) {
    let golden = &golden["bootstrap"]["many"];
    let stderr = number(&golden["stderr"]);
    let spread = (1.0 / resamples as f64 + 1.0 / number(&golden["resamples"])).sqrt() * stderr;
    let tolerance = 5.0 * 2.67_f64.hypot(2.51) * spread;
    assert_interval(compared.percentile, &golden["percentile"], 5.0 * 2.67 * spread, "percentile");
    assert_interval(compared.bca, &golden["bca"], tolerance, "BCa");
    let [percentile, bca] = ["percentile", "bca"].map(|key| floats(&golden[key])[1]);
    assert!((bca - percentile).abs() > 1.5 * tolerance, "the data tell one interval from the other");
}

#[test]
fn paired_scores() {
    let golden = expected("paired");
    let resampling = Resampling { resamples: 100_000, ..Resampling::default() };
    let compared = compare(&golden, None, &resampling);
    assert_close(Some(compared.difference), &golden["difference"], "difference");
    assert_close(compared.stderr, &golden["stderr"], "paired standard error");
    assert_intervals_of_own_draws(&compared, &golden, resampling.resamples);
    assert_eq!((compared.items, compared.clusters, compared.mcnemar), (40, None, None));
    assert_eq!(compared, compare(&golden, None, &resampling), "the same draws again");
}

#[test]
fn clustered_scores() {
    let golden = expected("clustered");
    let clusters = indices(&golden["clusters"]);
    let resampling = Resampling { resamples: 100_000, ..Resampling::default() };
    let compared = compare(&golden, Some(&clusters), &resampling);
    assert_close(Some(compared.difference), &golden["difference"], "difference");
    assert_close(compared.stderr, &golden["stderr"], "clustered standard error");
    assert_intervals_of_own_draws(&compared, &golden, resampling.resamples);
    let permutation = compared.permutation.unwrap();
    assert!(permutation.exact);
    assert_near(permutation.p, number(&golden["p"]), 1e-12, "sign flips of clusters");
    assert_eq!(compared.clusters, Some(floats(&golden["sums"]).len()));

    // Less the correction of the sample variance it is statsmodels' CR0.
    let differences: Vec<f64> =
        floats(&golden["candidate"]).iter().zip(floats(&golden["baseline"])).map(|(c, b)| c - b).collect();
    let n = differences.len() as f64;
    let correction = sample_standard_deviation(&differences).unwrap().powi(2) / (n * n);
    let cr0 = (clustered_stderr(&differences, &clusters).unwrap().powi(2) - correction).sqrt();
    assert_near(cr0, number(&golden["cr0"]), 1e-11, "CR0");
}

#[test]
fn few_pairs_take_all_signs_and_many_random_ones() {
    let (few, many) = (expected("few_pairs"), expected("paired"));
    let permutation = compare(&few, None, &Resampling::default()).permutation.unwrap();
    assert!(permutation.exact);
    assert_near(permutation.p, number(&few["p"]), 1e-12, "all signs");

    let resamples = 1_000_000;
    let permutation = compare(&many, None, &Resampling { resamples, ..Resampling::default() }).permutation.unwrap();
    let p = number(&many["p"]);
    assert!(!permutation.exact);
    assert!((permutation.p - p).abs() < 5.0 * (p / resamples as f64).sqrt(), "{permutation:?} is not {p}");
}

#[test]
fn right_and_wrong_answers() {
    let golden = expected("binary");
    let compared = compare(&golden, None, &Resampling { resamples: 100_000, ..Resampling::default() });
    let test = compared.mcnemar.unwrap();
    let expected = number(&golden["p"]);
    assert_eq!(test.only_baseline, count(&golden["only_baseline"]));
    assert_eq!(test.only_candidate, count(&golden["only_candidate"]));
    assert_near(test.p, expected, 1e-12, "McNemar");
    assert_close(compared.stderr, &golden["stderr"], "paired standard error");
    // Of 0/1 scores the sign-flip test is McNemar's, here by random signs.
    let permutation = compared.permutation.unwrap();
    assert!(!permutation.exact);
    assert!((permutation.p - expected).abs() < 5.0 * (expected / 1e5).sqrt(), "{permutation:?} {expected}");
}

fn assert_bins(found: &[ReliabilityBin], golden: &Value) {
    assert_eq!(found.iter().map(|bin| bin.count).collect::<Vec<_>>(), indices(&golden["counts"]));
    let occupied: Vec<&ReliabilityBin> = found.iter().filter(|bin| bin.count > 0).collect();
    let (accuracies, confidences) = (floats(&golden["accuracy"]), floats(&golden["mean_confidence"]));
    assert_eq!(occupied.len(), accuracies.len());
    for ((bin, accuracy), confidence) in occupied.into_iter().zip(accuracies).zip(confidences) {
        assert_near(bin.accuracy.unwrap(), accuracy, 1e-12, "accuracy of a bin");
        assert_near(bin.mean_confidence.unwrap(), confidence, 1e-12, "confidence of a bin");
        assert!(bin.lower <= confidence && confidence <= bin.upper);
    }
}

#[test]
fn calibration_of_option_probabilities() {
    let golden = expected("calibration");
    let logits: Vec<Vec<f64>> = golden["logits"].as_array().unwrap().iter().map(floats).collect();
    let targets = indices(&golden["targets"]);
    let predictions = Predictions::from_logits(&logits, &targets, 1.0).unwrap();
    assert_eq!(predictions.predicted().collect::<Vec<_>>(), indices(&golden["predicted"]));
    let ece = |binning| predictions.expected_calibration_error(binning, CALIBRATION_BINS);
    for (found, key) in [
        (predictions.accuracy(), "accuracy"),
        (predictions.brier(), "brier"),
        (predictions.nll(), "nll"),
        (ece(Binning::EqualWidth), "ece_equal_width"),
        (ece(Binning::EqualMass), "ece_equal_mass"),
        (predictions.aurc(), "aurc"),
        (predictions.accuracy_at_coverage(0.8), "accuracy_at_80"),
    ] {
        assert_close(Some(found), &golden[key], key);
    }
    assert_bins(&predictions.reliability(Binning::EqualWidth, CALIBRATION_BINS), &golden["bins"]);
    assert_bins(&predictions.reliability(Binning::EqualMass, CALIBRATION_BINS), &golden["mass_bins"]);
}

#[test]
fn a_fitted_temperature() {
    let golden = expected("calibration");
    let logits: Vec<Vec<f64>> = golden["logits"].as_array().unwrap().iter().map(floats).collect();
    let targets = indices(&golden["targets"]);
    let fitted = fit_temperature(&logits, &targets).unwrap();
    assert_close(Some(fitted.temperature), &golden["temperature"], "temperature");
    assert_close(Some(fitted.nll_before), &golden["nll"], "NLL before");
    assert_close(Some(fitted.nll_after), &golden["nll_after"], "NLL after");
    let scaled = Predictions::from_logits(&logits, &targets, fitted.temperature).unwrap();
    assert_close(Some(scaled.nll()), &golden["nll_after"], "NLL of scaled logits");
}

#[test]
fn classification_scores() {
    for case in cases("classification") {
        let confusion = Confusion::new(&indices(&case["predicted"]), &indices(&case["targets"])).unwrap();
        let constant = confusion.best_constant();
        for (found, key) in [
            (confusion.accuracy(), "accuracy"),
            (confusion.balanced_accuracy(), "balanced_accuracy"),
            (confusion.macro_f1(), "macro_f1"),
            (confusion.matthews_correlation(), "mcc"),
            (constant.accuracy, "majority_share"),
        ] {
            assert_close(Some(found), &case[key], key);
        }
        assert_eq!(constant.class, count(&case["best_constant"]));
    }
}
