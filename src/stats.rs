//! Statistics of samples.

use serde::{Deserialize, Serialize};

/// How samples spread around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    pub mean: f64,
    /// Standard deviation of the samples (n − 1); 0 for one sample.
    pub stddev: f64,
    pub n: u32,
}

impl Spread {
    /// Of samples, if there are any.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let n = u32::try_from(samples.len()).ok().filter(|n| *n > 0)?;
        let mean = samples.iter().sum::<f64>() / f64::from(n);
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let stddev = if n == 1 { 0.0 } else { (squares / f64::from(n - 1)).sqrt() };
        Some(Self { mean, stddev, n })
    }
}

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
    fn samples_have_a_mean_and_a_spread() {
        assert_eq!(Spread::of(&[2.0, 4.0, 6.0]), Some(Spread { mean: 4.0, stddev: 2.0, n: 3 }));
        assert_eq!(Spread::of(&[5.0]), Some(Spread { mean: 5.0, stddev: 0.0, n: 1 }));
        assert_eq!(Spread::of(&[]), None);
    }

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
