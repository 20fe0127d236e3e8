//! Several tests at once.

/// Holm's adjustment of p values, in the order of the input.
///
/// With `m` values in ascending order, the `i`-th (from 1) becomes `min(1, max over j ≤ i of (m - j + 1)·p_j)`: rejecting
/// what is at or below α keeps the chance of any false rejection at or below α, however the tests hang together. NaN
/// stays NaN and does not count in `m`: a test without a p value was not made. Source: Holm 1979, Scand. J. Statist. 6; the
/// same as statsmodels' `multipletests(method="holm")`.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).filter(|&i| !p_values[i].is_nan()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![f64::NAN; p_values.len()];
    let mut highest = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        highest = highest.max((order.len() - rank) as f64 * p_values[i]).min(1.0);
        adjusted[i] = highest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_and_never_falls() {
        let adjusted = holm(&[0.04, 0.01, 0.03]);
        assert!(adjusted.iter().zip([0.06, 0.03, 0.06]).all(|(a, b)| (a - b).abs() < 1e-15), "{adjusted:?}");
    }

    #[test]
    fn a_missing_value_is_no_test() {
        let adjusted = holm(&[f64::NAN, 0.02, 0.9]);
        assert!(adjusted[0].is_nan());
        assert_eq!(adjusted[1..], [0.04, 0.9]);
        assert!(holm(&[]).is_empty());
    }
}
