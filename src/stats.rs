//! Order statistics of samples.

/// The value that a share `q` of the samples is not above, by linear interpolation between neighbours (as NumPy's default);
/// `None` without samples or for a share outside 0 to 1.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&q) {
        return None;
    }
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 samples")]
    let at = q * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the last index")]
    let below = at.floor() as usize;
    let (low, high) = (*sorted.get(below)?, *sorted.get(below + 1).or(sorted.last())?);
    Some(low + (high - low) * (at - at.floor()))
}

/// The middle value; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// The largest; `None` without samples.
pub fn max(samples: &[f64]) -> Option<f64> {
    quantile(samples, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        for (q, expected) in [(0.0, 1.0), (0.5, 2.5), (0.95, 3.85), (1.0, 4.0), (1.0 / 3.0, 2.0)] {
            assert!((quantile(&samples, q).unwrap() - expected).abs() < 1e-12, "{q}");
        }
        assert_eq!((median(&[7.0]), max(&samples)), (Some(7.0), Some(4.0)));
        assert_eq!((median(&[]), quantile(&samples, 1.5), median(&[f64::NAN])), (None, None, None));
    }
}
